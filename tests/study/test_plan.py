"""The plan: what a study costs, from its file and from timed steps, before anything is trained."""

import json
import os
import re

import pytest

from megatron_cod.study.command import Command
from megatron_cod.study.plan import time_shape
from megatron_cod.study.runner import Machine
from tests.study.cases import study_of


def half_a_second(flags, log, show, slot):
    """A run of 1024 tokens a step at 2048 tokens/s after slower first steps."""
    path = flags[flags.index("--metrics-file") + 1]
    speeds = {step: 100.0 if step <= 4 else 2048.0 for step in range(2, 13)}
    lines = [{"step": step, "name": "tokens per second", "value": speed} for step, speed in speeds.items()]
    with open(path, "w") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    assert "--save" not in flags and flags[flags.index("--eval-iters", flags.index("--metrics-file") - 3) + 1] == "0"


@pytest.fixture()
def planned(tmp_path):
    study_of(tmp_path, depths=[8, 32], flags={"global-batch-size": 8, "micro-batch-size": 8}, steps=600)
    lines: list[str] = []
    command = Command(tmp_path / "study.yaml", tmp_path / "out", 2, lines.append, half_a_second)
    command.plan()
    return command, lines


def test_plan_names_runs_parameters_tokens_flops_and_epochs(planned):
    command, lines = planned
    text = "\n".join(lines)
    assert "shape 8 layers x 96: MLP 304, 6 heads, 996,960 non-embedding parameters" in text
    assert "a run is 600 steps, 614,400 tokens, 0.62 per parameter, 0.79 epochs of the text" in text
    arms, shapes, rates, seeds = 3, 2, 3, 3
    assert f"runs: {arms * shapes * (rates + seeds)}, and up to {arms * shapes * 2 * 3} more where a grid grows" in text
    flops = sum(
        18 * shape.flops_per_token(257, 128) * 600 * 1024 for shape in command.directory.study.shapes
    )  # 18 runs a shape
    assert float(re.search(r"grows; (\S+) FLOPs", text)[1]) == pytest.approx(flops, rel=1e-2)
    assert not list((command.directory.root).glob("runs/*"))


def test_time_is_that_of_timed_steps(planned):
    command, lines = planned
    speed = time_shape(command.directory, command.directory.study.shapes[0], half_a_second)
    assert speed.step == pytest.approx(0.5) and speed.start == 0.0
    seconds = 600 * 0.5 + speed.validation
    assert speed.run(600) == pytest.approx(seconds)
    assert any("time 8 layers x 96: 0.500 s a step, 5:" in line and "18 runs left" in line for line in lines)
    assert "with 2 at a time" in lines[-1]


def test_threads_are_divided_over_runs(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [Machine(jobs).threads for jobs in (1, 2, 3, 16)] == [8, 4, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert Machine(2).threads == 3
