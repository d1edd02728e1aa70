"""How often what watches a run waits for the device, counted; and the depth monitor under fp16's loss scale."""

import json
import re
from pathlib import Path

import pytest

from megatron_cod.analysis.metrics import VALID_LOSS
from megatron_cod.training.monitoring.depth_monitor import depth_tag
from tests.cuda.runs import DEBUG, Run, train

BASE = (*DEBUG, "--no-rope-fusion")


def waits(run: Run, file: str) -> int:
    """Waits of rank 0 by lines of one file of the package."""
    return sum(number for name, number in run.reports[0].items() if re.search(rf"^@sync .*\b{file}:\d+", name))


def recorded(folder: Path, name: str) -> dict[int, float]:
    """One figure of a run: step -> value."""
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return {one["step"]: one["value"] for one in lines if one["name"] == name}


@pytest.mark.slow
def test_one_wait_a_monitored_step_and_a_validation(tmp_path):
    """Not one for each of the four layers."""
    flags = [
        "--depth-monitor-interval",
        "2",
        "--eval-interval",
        "2",
        "--eval-iters",
        "2",
        "--save",
        str(tmp_path / "run"),
    ]
    run = train(1, tmp_path, *BASE, *flags).succeeded()
    steps = recorded(tmp_path / "run", depth_tag("variance after", 1))
    assert list(steps) == [2, 4] and set(recorded(tmp_path / "run", VALID_LOSS)) == {2, 4}
    evaluations = run.console.count("validation at step") + run.console.count("test at step")
    assert evaluations == 3  # the test set once, at the end
    assert waits(run, "depth_monitor.py") == len(steps)
    assert waits(run, "stream_variance.py") == evaluations
    assert waits(run, "evaluations.py") == 2 * evaluations  # which calls the former, and reads the loss
    assert waits(run, "fixed_set.py") <= 2  # at the start: the lengths of both sets
    # At the start: the parameters' number; whether a stage is wrong, and the texts that stages exchange.
    assert waits(run, "parameter_count.py") == 1
    assert waits(run, "depth_map.py") <= 6


def monitored(folder: Path, *flags: str) -> tuple[Run, list[dict[int, float]]]:
    """A monitored run, and the gradient norm behind each layer: step -> value."""
    run = train(1, folder, *BASE, "--depth-monitor-interval", "1", "--save", str(folder / "run"), *flags).succeeded()
    return run, [recorded(folder / "run", depth_tag("gradient norm", layer)) for layer in (1, 2, 3, 4)]


@pytest.mark.slow
def test_depth_monitor_divides_by_the_loss_scale_of_fp16(tmp_path):
    _, full = monitored(tmp_path / "fp32")
    _, half = monitored(tmp_path / "fp16", "--fp16", "--initial-loss-scale", str(2**14))
    for expected, found in zip(full, half, strict=True):
        assert list(found) == [1, 2, 3, 4] and found == pytest.approx(expected, rel=0.05)


@pytest.mark.slow
def test_the_depth_monitor_is_silent_where_the_loss_scale_overflows(tmp_path):
    run, norms = monitored(tmp_path, "--fp16", "--initial-loss-scale", str(2**40))
    assert "not finite" not in run.console
    assert norms == [{}, {}, {}, {}]
    assert len(recorded(tmp_path / "run", depth_tag("variance after", 4))) == 4
