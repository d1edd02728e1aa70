"""A run that knows the end of its job saves and stops in time."""

import os
import signal
import time

import pytest

from megatron_cod.checkpoint.directory import iteration_name
from megatron_cod.checkpoint.events import read_events
from megatron_cod.training.faults.handling import check_flags
from megatron_cod.training.faults.time_limit import TimeLimit, deadline, saving_seconds
from megatron_cod.training.flags.parser import UsageError, build_parser
from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import losses_of, succeed


def test_the_end_is_slurms_or_the_users(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    assert deadline("auto", 100.0) is None
    monkeypatch.setenv("SLURM_JOB_END_TIME", "5000")
    assert deadline("auto", 100.0) == 5000.0
    for no_end in ("NONE", "99"):  # none, and one that is over: nothing is known of this job's
        monkeypatch.setenv("SLURM_JOB_END_TIME", no_end)
        assert deadline("auto", 100.0) is None
    assert deadline("none", 100.0) is None
    assert deadline("2.5", 100.0) == 250.0


@pytest.mark.parametrize("wrong", ["0", "-3", "soon", "nan", "inf"])
def test_rejects_other_limits(wrong):
    with pytest.raises(ValueError, match=rf"--time-limit {wrong}: give auto, none, or minutes above 0"):
        check_flags(build_parser().parse_args(["--time-limit=" + wrong]))


def stops_at(end: float, steps: list[float], save: str | None = None) -> float | None:
    """The time at which a limit raises its signal, over steps of these lengths; None if never."""
    clock, raised = [0.0], []
    limit = TimeLimit(end, save, now=lambda: clock[0])
    before = signal.signal(signal.SIGTERM, lambda *_: raised.append(clock[0]))
    try:
        for seconds in steps:
            limit.step_begins()
            clock[0] += seconds
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(raised) <= 1
    return raised[0] if raised else None


def test_stops_with_time_for_a_step_and_a_save(tmp_path):
    # Steps of 10 s: at most 2 x 10 s + 30 s are needed, and 2 x 30 s for a save that was never seen.
    assert stops_at(3600, [10.0] * 400) == 3550
    assert stops_at(3600, [10.0] * 400, str(tmp_path)) == 3490
    # One interval of 100 s, with a save or a validation in it, is computed with from then on.
    assert stops_at(3600, [10.0] * 5 + [100.0] + [10.0] * 400) == 3370
    assert stops_at(10**6, [10.0] * 400) is None


def test_a_save_of_an_earlier_run_counts(tmp_path):
    folder = tmp_path / iteration_name(4)
    folder.mkdir()
    for number, age in enumerate((1000, 700)):
        path = folder / f"__{number}_0.distcp"
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    assert saving_seconds(str(tmp_path)) == pytest.approx(300, abs=0.1)
    assert stops_at(3600, [10.0] * 400, str(tmp_path)) == 2950


def test_a_short_job_trains_for_half_of_it():
    assert stops_at(20, [1.0] * 40) == 10


PP2 = ["--pipeline-model-parallel-size", "2"]
LONG = ["--train-iters", "60", "--lr-decay-iters", "60", "--eval-iters", "0", "--save-interval", "1000"]


@pytest.mark.slow
def test_a_run_stops_in_time_and_resumes_exactly(tiny, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    succeed(2, [*tiny, *LONG, *PP2, "--save", str(whole)])
    flags = [*tiny, *LONG, *PP2, "--save", str(cut), "--load", str(cut)]
    ended = run_training_ranks(2, [*flags, "--time-limit", "0.001"])
    assert [one.code for one in ended] == [1, 1] and all("exit code 85" in one.output for one in ended)
    told = read_events(cut)[-1]
    assert (told["event"], told["signal"]) == ("stopped by a signal", "time limit") and 1 <= told["step"] < 60
    succeed(2, flags)
    assert losses_of(cut) == losses_of(whole)


def test_rejects_flags_that_are_no_numbers():
    with pytest.raises(UsageError, match=r"--hang-timeout: '-1' is not a number of at least 0"):
        build_parser().parse_args(["--hang-timeout=-1"])
