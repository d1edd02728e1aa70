"""On an emulated device a run that stops and resumes has the values of the unbroken run, to the bit."""

from pathlib import Path

import pytest

from megatron_cod.analysis.metrics import read_metrics
from tests.cuda.runs import DEBUG, train

SIX = (*DEBUG, "--train-iters", "6", "--lr-decay-iters", "6", "--save-interval", "3")
PP2 = ("--pipeline-model-parallel-size", "2")
LAYOUTS = {"one": (1, ()), "pp2": (2, PP2)}
MEASURED = ("speed", "time", "memory", "per second", "tflops", "mfu", "tokens seen")
"""The first step of a process has no speed, and with it no count of tokens."""


def values(folder: Path) -> dict:
    """Every metric that is no measure of time or memory: name -> step -> value."""
    scalars = read_metrics(folder / "metrics.jsonl").scalars
    return {name: dict(one) for name, one in scalars.items() if not any(word in name.lower() for word in MEASURED)}


def in_two_parts(world: int, folder: Path, layout: tuple[str, ...], *second: str) -> dict:
    save = ("--save", str(folder / "run"))
    train(world, folder, *SIX, *layout, *save, "--exit-interval", "3").succeeded()
    train(world, folder, *SIX, *layout, *save, "--load", str(folder / "run"), *second).succeeded()
    return values(folder / "run")


@pytest.mark.parametrize(("world", "layout"), LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.slow
def test_stopping_changes_nothing_to_the_bit(world, layout, tmp_path):
    train(world, tmp_path / "w", *SIX, *layout, "--save", str(tmp_path / "w" / "run")).succeeded()
    whole = values(tmp_path / "w" / "run")
    assert len(whole) > 3 and all(len(steps) for steps in whole.values())
    assert in_two_parts(world, tmp_path / "two", layout) == whole


@pytest.mark.slow
def test_detects_lost_optimizer_state(tmp_path):
    train(1, tmp_path / "w", *SIX, "--save", str(tmp_path / "w" / "run")).succeeded()
    assert in_two_parts(1, tmp_path / "two", (), "--no-load-optim") != values(tmp_path / "w" / "run")
