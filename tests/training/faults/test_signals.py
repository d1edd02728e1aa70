"""SIGTERM and SIGUSR1 end a run after the step at hand is saved, with exit code 85; it then goes on to the same losses."""

import json
import os
import signal
import threading
import time

import pytest

from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import losses_of, succeed

PP2 = ["--pipeline-model-parallel-size", "2"]
LONG = ["--train-iters", "40", "--lr-decay-iters", "40", "--eval-interval", "100", "--save-interval", "100"]


def send(number: int, rank: int, after_step: int):
    """Before the run: a thread in one rank sends itself the signal once a step is done."""

    def before() -> None:
        if os.environ["RANK"] != str(rank):
            return

        def wait() -> None:
            from megatron.training.global_vars import get_args

            while True:
                time.sleep(0.01)
                try:
                    if getattr(get_args(), "curr_iteration", 0) >= after_step:
                        break
                except AssertionError:
                    continue
            os.kill(os.getpid(), number)

        threading.Thread(target=wait, daemon=True).start()

    return before


class Sender:
    """``send`` as something that travels to a worker."""

    def __init__(self, *what: int) -> None:
        self.what = what

    def __call__(self) -> None:
        send(*self.what)()


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    succeed(2, [*tiny, *LONG, *PP2, "--save", str(folder)])
    return losses_of(folder)


def events_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("number", "rank"), [(signal.SIGUSR1, 1), (signal.SIGTERM, 0)], ids=["USR1 at 1", "TERM at 0"])
@pytest.mark.slow
def test_a_signal_at_one_rank_stops_all_and_the_run_resumes_exactly(tiny, whole, tmp_path, number, rank):
    flags = [*tiny, *LONG, *PP2, "--save", str(tmp_path), "--load", str(tmp_path)]
    ended = run_training_ranks(2, flags, before=Sender(number, rank, 5))
    assert [one.code for one in ended] == [1, 1] and all("exit code 85" in one.output for one in ended)
    step = int((tmp_path / "latest_checkpointed_iteration.txt").read_text())
    assert 5 <= step < 40
    start, stopped = events_of(tmp_path)
    assert (start["event"], stopped["event"], stopped["step"]) == ("start", "stopped by a signal", step)
    succeed(2, flags)
    assert losses_of(tmp_path) == whole
    assert [one["event"] for one in events_of(tmp_path)[2:]] == ["start", "finished"]
