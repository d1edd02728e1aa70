"""Flags of saving that would fail at the first save or at the resume are refused at the start, by the rehearsal too.

That the others save and resume: ``tests/cuda/test_save_flags.py``.
"""

import re

import pytest

from megatron_cod.adaptations import torch_only
from megatron_cod.rehearsal.launch import read_launch
from megatron_cod.training.flags.parser import build_parser
from megatron_cod.training.flags.save_checks import check_saving
from tests.training.flags.save_flags import CASES, DCP, ELSEWHERE, FSDP2

REFUSED = {name: case for name, case in CASES.items() if case.refused}
ACCEPTED = {name: case for name, case in CASES.items() if not case.refused}


def check(*flags: str) -> None:
    check_saving(build_parser().parse_args(["--save", "somewhere", "--swiglu", *flags]))


def _names(words: tuple[str, ...]) -> set[str]:
    return {word.removeprefix("--") for word in words if word.startswith("--")}


def test_every_flag_of_checkpoints_is_classified():
    """A flag that Megatron adds to the group fails this until it is tried."""
    group = next(one for one in build_parser()._action_groups if one.title == "checkpointing")
    tried = set(ELSEWHERE).union(*(_names(case.flags + case.resumed) for case in CASES.values()))
    unknown = [
        action.option_strings for action in group._group_actions if not _names(tuple(action.option_strings)) & tried
    ]
    assert unknown == []


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_rejects_what_cannot_be_saved_or_loaded(case):
    with pytest.raises(ValueError) as error:  # the words are below
        check(*case.flags)
    assert all(word in str(error.value) for word in case.refused) and "\n" not in str(error.value)


@pytest.mark.parametrize("case", ACCEPTED.values(), ids=ACCEPTED)
def test_accepts_what_is_saved(case):
    check(*case.flags, *case.resumed)


def test_accepts_anything_without_save():
    for case in REFUSED.values():
        if "--save" not in " ".join(case.flags):
            check_saving(build_parser().parse_args(["--swiglu", *case.flags]))


def test_rejects_fsdp2_where_its_checkpoints_cannot_be_loaded(monkeypatch):
    """Where Transformer Engine or Apex is, Megatron is not adapted; weights alone are saved there too."""
    monkeypatch.setattr(torch_only, "applies", lambda: False)
    with pytest.raises(ValueError, match=re.escape("saves in torch_dcp what Megatron-Core 0.19.2 cannot load")):
        check(*DCP)
    check(*FSDP2, "--no-save-optim")


def test_the_rehearsal_refuses_it_too(tiny, tmp_path):
    with pytest.raises(ValueError, match="--use-torch-fsdp2 cannot save its optimizer"):
        read_launch([*tiny, *FSDP2, "--save", str(tmp_path), "--save-interval", "2"], 2)
