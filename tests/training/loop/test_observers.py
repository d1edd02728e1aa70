"""What watches a run: a new observer is one class and one row; each event comes when and where its table says."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megatron_cod.checkpoint.events import read_events
from megatron_cod.training.loop.observers import EVENTS, Observer, Run, around, watch_for
from tests.distributed.launch import run_training_ranks
from tests.training.faults.mutants import current_step

STEPS = 3
FLAGS = [
    *("--micro-batch-size", "1", "--global-batch-size", "2", "--train-iters", str(STEPS), "--lr-decay-iters", "3"),
    *("--eval-iters", "1", "--eval-interval", "3", "--log-interval", "1", "--pipeline-model-parallel-size", "2"),
]


def test_the_table_has_every_event():
    rows = re.findall(r"^ +\| `(\w+)` \|", Observer.__doc__ or "", re.M)
    assert sorted(rows) == sorted(EVENTS)


def test_an_observer_that_has_no_event_does_nothing():
    nobody = Observer()
    step = object()
    assert nobody.wrap_forward(step) is step and nobody.loss(1, 2.0) is None
    with nobody.around_training():
        nobody.model_built([])
    assert watch_for("gradients_ready", [nobody]) == []


def test_contexts_that_were_entered_are_left_where_a_later_one_fails():
    told = []

    class Outer(Observer):
        @contextmanager
        def around_training(self) -> Iterator[None]:
            try:
                yield
            finally:
                told.append("left")

    class Fails(Observer):
        def around_training(self) -> Any:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        around([Outer(), Fails()])
    assert told == ["left"]


# ---- a fault handler as a user of the package would write it: one class


class StopsAtLoss(Observer):
    """Ends the run with one line where the loss is below a limit, before the optimizer's next step."""

    def __init__(self, run: Run) -> None:
        self._run, self._reached = run, False

    def loss(self, step: int, loss: float) -> str | None:
        self._run.events.add_here("low loss", step=step)
        return f"the loss of step {step} is low enough"

    def gradients_ready(self) -> None:
        from megatron_cod.errors import UserError

        if current_step() == 3:
            raise UserError("stopped by the new handler before step 3")


class Records(Observer):
    """Writes down every event of this rank, with what exists then."""

    def __init__(self, name: str, path: Path) -> None:
        self._name, self._path = name, path

    def _note(self, event: str, *facts: Any) -> None:
        import torch
        from megatron.core import mpu

        ready = torch.distributed.is_initialized() and mpu.model_parallel_is_initialized()
        with self._path.open("a") as file:
            file.write(json.dumps([self._name, event, ready, *facts]) + "\n")

    @contextmanager
    def around_training(self) -> Iterator[None]:
        self._note("around_training")
        try:
            yield
        finally:
            self._note("left")

    def model_built(self, model: list[Any]) -> None:
        self._note("model_built", all(hasattr(chunk, "zero_grad_buffer") for chunk in model))

    def wrap_forward(self, step: Callable[..., Any]) -> Callable[..., Any]:
        self._note("wrap_forward")
        return step

    def training_begins(self) -> None:
        self._note("training_begins")

    def step_begins(self) -> None:
        self._note("step_begins", current_step())

    def forward_begins(self) -> None:
        self._note("forward_begins", current_step())

    def gradients_ready(self) -> None:
        self._note("gradients_ready", current_step())

    def loss(self, step: int, loss: float) -> str | None:
        self._note("loss", step)
        return None


@dataclass(frozen=True)
class AddRows:
    """Puts rows around those of the package, in a rank before it trains."""

    folder: Path

    def __call__(self) -> None:
        from megatron_cod.training import run

        path = self.folder / os.environ["RANK"]
        run.OBSERVERS = (
            lambda _: Records("first", path),
            *run.OBSERVERS,
            lambda _: Records("last", path),
        )


class AddHandler:
    """The one row."""

    def __call__(self) -> None:
        from megatron_cod.training import run

        run.OBSERVERS = (*run.OBSERVERS, StopsAtLoss)


def test_each_event_comes_in_order_and_on_its_ranks(tiny, tmp_path):
    ended = run_training_ranks(2, [*tiny, *FLAGS], before=AddRows(tmp_path))
    assert [one.code for one in ended] == [0, 0], ended[0].output[-3000:]
    for rank in (0, 1):
        lines = [json.loads(line) for line in (tmp_path / str(rank)).read_text().splitlines()]
        first, last = ([line[1:] for line in lines if line[0] == name] for name in ("first", "last"))
        assert first == last  # each event is told to all
        told = [line for line in lines if line[1] != "left"]
        assert [line[0] for line in told] == ["first", "last"] * (len(told) // 2)
        assert [line[0] for line in lines if line[1] == "left"] == ["last", "first"]
        assert first[:5] == [
            ["around_training", False],
            ["wrap_forward", False],
            ["model_built", True, True],
            ["training_begins", True],
            ["step_begins", True, 1],
        ]
        assert [line[0] for line in first].count("training_begins") == 1
        within = {step: [line[0] for line in first[4:] if line[2:] == [step]] for step in range(1, STEPS + 1)}
        losses = ["loss"] if rank == 1 else []
        for step, events in within.items():
            validation = ["forward_begins"] * 2 if step == STEPS else []  # one validation of two micro-batches
            assert events[:4] == ["step_begins", "forward_begins", "forward_begins", "gradients_ready"], events
            assert sorted(events[4:]) == sorted([*losses, *validation]), (step, events)


def test_a_new_fault_handler_is_one_class_and_one_row(tiny, tmp_path):
    save = tmp_path / "run"
    ended = run_training_ranks(2, [*tiny, *FLAGS, "--save", str(save), "--save-interval", "5"], before=AddHandler())
    assert ended[0].code == 2, ended[0].output[-3000:]
    assert "error: stopped by the new handler before step 3" in ended[0].output
    assert re.findall(r"the loss of step (\d) is low enough", ended[0].output) == ["1", "2"]  # rank 1 has it
    events = read_events(save)
    assert [one["step"] for one in events if one["event"] == "low loss"] == [1, 2]
    assert [one["error"] for one in events if one["event"] == "failed"] == [
        "UserError: stopped by the new handler before step 3"
    ]


def test_summary_counts_remaining_checkpoints(tiny, tmp_path):
    """The order of the rows: retention is over when the report ends."""
    flags = [
        *tiny,
        *FLAGS[:-2],
        "--save",
        str(tmp_path / "run"),
        "--save-interval",
        "1",
        "--keep-last-checkpoints",
        "1",
    ]
    (ended,) = run_training_ranks(1, flags)
    assert ended.code == 0, ended.output[-3000:]
    assert "checkpoints    1 in" in ended.output
