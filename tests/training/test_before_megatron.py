"""Megatron calls make at its start, where its wheel holds nothing to make."""

import os
import shutil

import pytest
from megatron.core.datasets.utils import compile_helpers

from megatron_cod.training.before_megatron import forget_make, satisfy_make


@pytest.fixture(params=["make is installed", "no make, as in slim images"])
def machine(request, tmp_path, monkeypatch):
    """A machine with and one without make: what is left of its environment."""
    for name in ("true", "make") if request.param.startswith("make") else ("true",):
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"no {name} here")
        (tmp_path / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("MAKEFLAGS", raising=False)


def test_megatrons_call_of_make_ends_well_and_nothing_is_left(machine):
    before = dict(os.environ)
    satisfy_make()
    compile_helpers()
    forget_make()
    assert dict(os.environ) == before
    with pytest.raises((SystemExit, FileNotFoundError)):  # what ended a run
        compile_helpers()
