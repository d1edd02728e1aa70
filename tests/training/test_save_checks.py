"""Flags of saving that would fail at the first save or at the resume are refused at the start, by the rehearsal too."""

import re

import pytest

from megatron_cod import torch_adaptations
from megatron_cod.rehearsal.launch import read_launch
from megatron_cod.training.arguments import build_parser
from megatron_cod.training.save_checks import check_saving

FSDP2, MEGATRON_FSDP = "--use-torch-fsdp2", "--use-megatron-fsdp"
ASYNC = ["--async-save", "--use-persistent-ckpt-worker"]


def check(*flags: str) -> None:
    check_saving(build_parser().parse_args(["--save", "somewhere", *flags]))


REFUSED = {
    "sgd": (["--optimizer", "sgd"], "--optimizer sgd does not resume"),
    "old format": (["--ckpt-format", "torch"], "--ckpt-format torch is Megatron's old format"),
    "dcp alone": (["--ckpt-format", "torch_dcp"], "--ckpt-format torch_dcp is for --use-torch-fsdp2"),
    "dtensor alone": (["--ckpt-format", "fsdp_dtensor"], "--ckpt-format fsdp_dtensor is for --use-megatron-fsdp"),
    "fsdp2": ([FSDP2], "--use-torch-fsdp2 cannot save its optimizer in torch_dist: give --ckpt-format torch_dcp"),
    "megatron fsdp": ([MEGATRON_FSDP, "--swiglu"], "--use-megatron-fsdp does not save a model with --swiglu"),
    "non-persistent": (["--non-persistent-save-interval", "5"], "give a shorter --save-interval"),
    "local": (["--non-persistent-ckpt-type", "local"], "--non-persistent-ckpt-type are not supported"),
}


@pytest.mark.parametrize(("flags", "line"), REFUSED.values(), ids=REFUSED)
def test_refuses_what_cannot_be_saved_or_loaded(flags, line):
    with pytest.raises(ValueError, match=re.escape(line)):
        check(*flags)


ACCEPTED = {
    "default": [],
    "fsdp2": [FSDP2, "--ckpt-format", "torch_dcp"],
    "fsdp2 weights": [FSDP2, "--no-save-optim"],
}


@pytest.mark.parametrize("flags", ACCEPTED.values(), ids=ACCEPTED)
def test_accepts_what_is_saved(flags):
    check(*flags)


@pytest.mark.parametrize(("flags", "_"), REFUSED.values(), ids=REFUSED)
def test_accepts_anything_without_save(flags, _):
    check_saving(build_parser().parse_args(flags))


def test_refuses_fsdp2_where_its_checkpoints_cannot_be_loaded(monkeypatch):
    """Where Transformer Engine or Apex is, Megatron is not adapted; weights alone are saved there too."""
    monkeypatch.setattr(torch_adaptations, "applies", lambda: False)
    with pytest.raises(ValueError, match=r"saves in torch_dcp what Megatron-Core 0\.19\.2 cannot load"):
        check(FSDP2, "--ckpt-format", "torch_dcp")
    check(FSDP2, "--no-save-optim")


def test_the_rehearsal_refuses_it_too(tiny, tmp_path):
    with pytest.raises(ValueError, match="--use-torch-fsdp2 cannot save its optimizer"):
        read_launch([*tiny, FSDP2, "--save", str(tmp_path)], 2)
