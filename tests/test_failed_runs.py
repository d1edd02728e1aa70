"""Real runs that end on an error planted in each phase: a line for the user, or a trace in the rank's log."""

import importlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_cod.errors import USER_ERROR, UserError
from tests.distributed.launch import run_training_ranks


@dataclass(frozen=True)
class Planted:
    """One rank raises in a place; an object, since it travels to another process."""

    place: str
    rank: int
    kind: type[Exception]

    def __call__(self) -> None:
        if int(os.environ["RANK"]) != self.rank:
            return
        module, name = PLACES[self.place].rsplit(".", 1)
        setattr(importlib.import_module(module), name, self._fails)

    def _fails(self, *_: object, **__: object) -> None:
        raise self.kind(f"planted in {self.place}")


PLACES = {
    "the command line": "megatron_cod.launch.devices.check_driver",
    "the checks": "megatron_cod.checkpoint.scheme_record.record",
    "set-up": "megatron_cod.training.loop.random_states.skip_foreign",
    "the first step": "megatron_cod.training.data.batches.get_batch",
    "a save": "megatron.training.checkpointing.generate_state_dict",
}
SHORT = ["--micro-batch-size", "1", "--train-iters", "2", "--lr-decay-iters", "2", "--eval-iters", "0"]


def run_planted(world: int, tiny: list[str], save: Path, place: str, kind: type[Exception]) -> tuple[list, str, str]:
    """(how the ranks ended, all consoles, the failing rank's log)."""
    flags = [*tiny, *SHORT, "--save-interval", "2", "--save", str(save)]
    if world > 1:
        flags += ["--pipeline-model-parallel-size", "2"]
    ended = run_training_ranks(world, flags, before=Planted(place, world - 1, kind))
    log = save / "logs" / f"rank_{world - 1:05d}.log"
    return ended, "\n".join(one.output for one in ended), log.read_text() if log.is_file() else ""


@pytest.mark.slow_except("the checks-2", "the command line-2")
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("place", PLACES)
def test_an_internal_error_keeps_its_trace_and_is_no_error_of_the_user(tiny, tmp_path, place, world):
    ended, console, log = run_planted(world, tiny, tmp_path / "run", place, ValueError)
    assert ended[-1].code == 1 and all(one.code not in (0, USER_ERROR) for one in ended), console[-3000:]
    said = f"rank {world - 1} failed: ValueError: planted in {place}; this is a fault of megatron_cod"
    assert said in console
    for line in re.findall(r"^error: .*", console, re.M):  # of those that hear of it, or lose their connection
        assert f"ValueError: planted in {place}; this is a fault of megatron_cod" in line or "gloo/transport" in line
    text = ended[-1].output.split(said)[0] if place == "the command line" else log  # there is no log yet
    assert "Traceback (most recent call last)" in text and "in _fails" in text
    assert f"ValueError: planted in {place}" in text


class SlowToEnd(Planted):
    """The others have ended, and the launcher has sent its SIGTERM, before the failing rank ends."""

    def __call__(self) -> None:
        from megatron_cod.launch.start_agreement import _Meeting

        super().__call__()
        if os.environ["RANK"] == "1":
            leave = _Meeting.leave
            _Meeting.leave = lambda self: (leave(self), time.sleep(3))


@pytest.mark.slow
def test_the_failing_rank_keeps_its_trace_when_the_launcher_ends_it(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "Planted", SlowToEnd)
    ended, console, log = run_planted(2, tiny, tmp_path / "run", "the checks", ValueError)
    assert ended[1].code == 1, console[-3000:]
    assert "Traceback (most recent call last)" in log and "ValueError: planted in the checks" in log


@pytest.mark.slow_except("the checks-2")
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("place", PLACES)
def test_an_error_for_the_user_is_one_line(tiny, tmp_path, place, world):
    ended, console, log = run_planted(world, tiny, tmp_path / "run", place, UserError)
    assert ended[-1].code == USER_ERROR, console[-3000:]
    lines = re.findall(r"^error: .*", console, re.M)
    told = [line for line in lines if line.endswith(f"planted in {place}")]
    assert told and all(line in told or "gloo/transport" in line for line in lines)
    assert "Traceback" not in ended[-1].output + log and "is a fault" not in console
