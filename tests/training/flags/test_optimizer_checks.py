"""Optimizers that run, and what the others are told."""

import importlib.util
import re

import pytest

from megatron_cod.rehearsal.launch import read_launch
from megatron_cod.training.flags.optimizer_checks import check_optimizer
from megatron_cod.training.flags.parser import build_parser

MISSING = importlib.util.find_spec("emerging_optimizers") is None
needs_package = pytest.mark.skipif(MISSING, reason="emerging-optimizers is not installed")


def check(*flags: str) -> None:
    check_optimizer(build_parser().parse_args(flags))


@needs_package
@pytest.mark.parametrize(
    "flags", [[], ["--optimizer", "sgd"], ["--optimizer", "muon", "--bf16"], ["--optimizer", "lion"]]
)
def test_accepts_supported_optimizers(flags):
    check(*flags)


WRONG = {
    "distributed": (
        ["--optimizer", "muon", "--use-distributed-optimizer"],
        "--optimizer muon does not support --use-distributed-optimizer (each replica then has all of the state",
    ),
    "fp16": (["--optimizer", "lion", "--fp16"], "--optimizer lion does not support --fp16 (--bf16 runs)"),
    "fsdp": (["--optimizer", "muon", "--use-torch-fsdp2"], "--optimizer muon does not support --use-torch-fsdp2"),
    "soap": (["--optimizer", "soap"], "--optimizer soap is not supported: its state has shapes of its own"),
    "adaptive": (["--optimizer", "adaptive_muon"], "its first step fails; there are adam, sgd, muon, lion"),
    "old name": (["--optimizer", "dist_muon"], "it is Megatron's old name of muon over the distributed optimizer"),
}


@needs_package
@pytest.mark.parametrize(("flags", "line"), WRONG.values(), ids=WRONG)
def test_rejects_unsupported_optimizers(flags, line):
    with pytest.raises(ValueError, match=re.escape(line)):
        check(*flags)


def test_names_missing_package(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "emerging" in name else found(name))
    check("--optimizer", "adam")
    with pytest.raises(ValueError, match="--optimizer muon needs the package emerging-optimizers: pip install emerg"):
        check("--optimizer", "muon")


@needs_package
def test_the_rehearsal_refuses_them_too(tiny):
    with pytest.raises(ValueError, match="--optimizer muon does not support --use-distributed-optimizer"):
        read_launch([*tiny, "--optimizer", "muon", "--use-distributed-optimizer"], 2)
    assert read_launch([*tiny, "--optimizer", "muon"], 2).args.optimizer == "muon"
