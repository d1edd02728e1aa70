"""These tests need Transformer Engine: emulated on the CPU (``make test`` runs them so), or the real one on a GPU."""

import importlib.util

import pytest

from megatron_cod.adaptations import cpu
from tests.te import emulation

collect_ignore_glob: list[str] = []


def missing() -> str | None:
    """Why the tests of this folder cannot run here; None when they can."""
    if emulation.is_asked_for():
        return None
    if importlib.util.find_spec("transformer_engine") is None:
        return f"Transformer Engine is not installed; {emulation.SWITCH}=emulated runs these tests on the CPU"
    return None if cpu.has_cuda() else "Transformer Engine is installed but there is no CUDA device"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = missing()
    for item in items:
        if reason and "tests/te/" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason=reason))
