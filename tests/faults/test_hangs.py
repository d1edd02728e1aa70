"""A rank that stops answering ends the run within the time-out, and is named."""

import re
import time
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from megatron_cod.training.faults import hangs
from megatron_cod.training.faults.events import Events, read_events
from megatron_cod.training.faults.hangs import HUNG, HangWatch, Sign, culprits
from tests.distributed.launch import run_training_ranks
from tests.faults.mutants import Stuck

PP2 = ["--pipeline-model-parallel-size", "2"]
LONG = ["--train-iters", "2000", "--lr-decay-iters", "2000", "--eval-iters", "0", "--save-interval", "3"]

CASES = {
    "rank 1 stopped": (2, PP2, Stuck(1, 5, "stopped"), r"no sign of life for \d+ s from rank 1 on \S+ \(pid \d+, "),
    "rank 0 stopped": (2, [], Stuck(0, 5, "stopped"), r"no sign of life for \d+ s from rank 0 on \S+ \(pid \d+, "),
    "loader of rank 1 stuck": (
        *(2, PP2, Stuck(1, 5, "loading")),
        r"no progress for \d+ s from rank 1 on \S+ \(pid \d+, loading data \(faults/mutants.py:\d+ stuck\)",
    ),
    "loader of rank 0 stuck": (2, [], Stuck(0, 5, "loading"), r"no progress for \d+ s from rank 0 on"),
}


@pytest.mark.parametrize(("world", "flags", "stuck", "said"), CASES.values(), ids=CASES)
@pytest.mark.slow_except("rank 1 stopped", "loader of rank 0 stuck")
def test_a_hung_rank_is_named(tiny, tmp_path, world, flags, stuck, said):
    begun = time.monotonic()
    flags = [*tiny, *LONG, *flags, "--save", str(tmp_path), "--hang-timeout", "8"]
    ended = run_training_ranks(world, flags, before=stuck)
    assert HUNG in [rank.code for rank in ended]
    errors = [line for rank in ended for line in rank.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.search(said, errors[0]), errors
    told = [one for one in read_events(tmp_path) if one["event"] == "hang"]
    assert [one["ranks"] for one in told] == [[stuck.rank]]
    assert time.monotonic() - begun < 120


@pytest.mark.slow
def test_a_slow_run_is_no_hang(tiny, tmp_path):
    """Steps longer than the interval between signs, a validation and saves: the run ends well."""
    flags = [*tiny, *PP2, "--save", str(tmp_path), "--save-interval", "2", "--hang-timeout", "3"]
    ended = run_training_ranks(2, flags, before=Slow())
    assert [rank.code for rank in ended] == [0, 0], ended[0].output[-2000:]
    assert "finished" in [one["event"] for one in read_events(tmp_path)]


class Slow:
    """Every micro-batch of rank 1 takes most of a time-out."""

    def __call__(self) -> None:
        import os

        from megatron_cod.training import batches

        get_batch = batches.get_batch

        def slow(*args, **kwargs):
            time.sleep(1.0 if os.environ["RANK"] == "1" else 0.0)
            return get_batch(*args, **kwargs)

        batches.get_batch = slow


def sign(still: float, doing: str, forwards: int = 7) -> Sign:
    return Sign(3, forwards, still, doing, "node", 1)


WAITING, LOADING, SAVING = "waiting for other ranks (a)", "loading data (b)", "saving a checkpoint (c)"


@pytest.mark.parametrize(
    ("signs", "named"),
    [
        ([sign(11, WAITING), sign(12, LOADING), sign(11, WAITING)], [1]),
        ([sign(11, WAITING), sign(2, "computing"), sign(11, WAITING)], []),  # slow, not hung
        ([sign(11, WAITING, 9), sign(12, WAITING, 8), sign(11, WAITING, 9)], [1]),  # a message that nobody sends
        ([sign(11, WAITING), sign(12, WAITING)], [0, 1]),
        ([sign(11, WAITING), sign(12, SAVING)], []),
        ([sign(31, WAITING), sign(32, SAVING)], [1]),
    ],
)
def test_who_keeps_the_others_waiting(signs, named):
    assert culprits(dict(enumerate(signs)), 10.0) == named


class Ended(Exception):
    pass


def test_one_speaks_and_the_others_end_with_its_words(tmp_path, capsys):
    """Two watches over one store: both see rank 2, which left a sign and no more."""
    store, codes = HashStore(), []
    store.set_timeout(timedelta(seconds=5))
    store.set("sign/2", '{"number": 4, "forwards": 3, "still": 0.1, "doing": "computing (x)", "host": "n2", "pid": 22}')
    watches = [HangWatch(1.0, rank, 3, lambda: store, Events(str(tmp_path), rank), codes.append) for rank in (0, 1)]
    for watch in watches:
        watch.beat()
        watch.start()
    deadline = time.monotonic() + 20
    while len(codes) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    for watch in watches:
        watch.stop()
    assert set(codes) == {HUNG}
    assert capsys.readouterr().err.count("error: no sign of life") == 1
    assert [one["ranks"] for one in read_events(tmp_path)] == [[2]]


def test_a_store_that_does_not_answer(tmp_path, capsys):
    """Its host is stopped: the thread that asks it never comes back, the other one speaks."""
    codes = []

    class Silent:
        def set(self, *_: object) -> None:
            time.sleep(30)

    watch = HangWatch(1.0, 1, 2, Silent, Events(str(tmp_path), 1), codes.append)
    watch.start()
    time.sleep(3.5)
    watch._over.set()
    assert codes and codes[0] == HUNG
    assert "from the store that rank 0's process keeps" in capsys.readouterr().err


def test_the_innermost_place_counts():
    import sys

    frame = sys._getframe()
    assert hangs.doing(frame).startswith("computing (faults/test_hangs.py:")
    assert hangs.doing(None) == "computing ()"
