"""A rank that stops answering ends the run within the time-out, and is named."""

import json
import re
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from types import SimpleNamespace

import pytest
from torch.distributed import HashStore

from megatron_cod.checkpoint.events import Events, read_events
from megatron_cod.training.faults import main_thread_state
from megatron_cod.training.faults.collectives import Collectives, from_entries
from megatron_cod.training.faults.handling import hang_limits
from megatron_cod.training.faults.hang_diagnosis import Heartbeat, Limits, diagnose
from megatron_cod.training.faults.hangs import HUNG, HangWatch
from megatron_cod.training.faults.main_thread_state import Wait, doing
from tests.distributed.launch import run_training_ranks
from tests.training.faults.mutants import Stuck, StuckIn

PP2 = ["--pipeline-model-parallel-size", "2"]
LONG = ["--train-iters", "2000", "--lr-decay-iters", "2000", "--eval-iters", "0", "--save-interval", "3"]

CASES = {
    "rank 1 stopped": (2, PP2, Stuck(1, 5, "stopped"), r"no heartbeat for \d+ s from rank 1 on \S+ \(pid \d+, "),
    "rank 0 stopped": (2, [], Stuck(0, 5, "stopped"), r"no heartbeat for \d+ s from rank 0 on \S+ \(pid \d+, "),
    "loader of rank 1 stuck": (
        *(2, PP2, Stuck(1, 5, "loading")),
        r"no progress for \d+ s from rank 1 on \S+ \(pid \d+, loading data \(faults/mutants.py:\d+ __next__\)",
    ),
    "loader of rank 0 stuck": (2, [], Stuck(0, 5, "loading"), r"no progress for \d+ s from rank 0 on"),
}


@pytest.mark.parametrize(("world", "flags", "stuck", "said"), CASES.values(), ids=CASES)
@pytest.mark.slow_except("rank 1 stopped")
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

        from megatron_cod.training.data import batches

        get_batch = batches.get_batch

        def slow(*args, **kwargs):
            time.sleep(1.0 if os.environ["RANK"] == "1" else 0.0)
            return get_batch(*args, **kwargs)

        batches.get_batch = slow


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stuck", "said"),
    [
        (StuckIn("megatron.training.checkpointing", "dist_checkpointing.save", 1), "saving a checkpoint"),
        (
            StuckIn("megatron_cod.training.data.batches", "BlendedMegatronDatasetBuilder.build", 1),
            "building datasets",
        ),
    ],
    ids=["save", "set-up"],
)
def test_a_hang_in_set_up_or_a_save_is_named_before_a_collective_fails(tiny, tmp_path, stuck, said):
    """The collectives wait for a minute; a hang time-out of 25 s allows a save 75."""
    flags = [*tiny, *LONG, "--save", str(tmp_path), "--distributed-timeout-minutes", "1", "--hang-timeout", "25"]
    ended = run_training_ranks(2, flags, before=stuck)
    assert HUNG in [rank.code for rank in ended], ended[0].output[-2000:]
    errors = [line for rank in ended for line in rank.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.search(rf"no progress for \d+ s from rank 1 on \S+ \(pid \d+, {said}", errors[0])
    events = [one["event"] for one in read_events(tmp_path)]
    assert events.count("hang") == 1 and "failed" not in events


def sign(still: float, doing: str, forwards: int = 7, waited: float = 0.0) -> Heartbeat:
    return Heartbeat(3, forwards, still, waited, doing, "node", 1)


LIMITS = Limits(10.0, set_up=40.0, training=25.0)  # patience: 35 s, then 20 s


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
        ([sign(21, WAITING, waited=20), sign(22, SAVING)], [1]),  # the collective that rank 0 waits in is about to fail
        ([sign(21, WAITING, waited=19), sign(22, SAVING)], []),
        ([sign(28, SAVING), sign(28, SAVING)], []),  # nobody waits
        ([sign(90, WAITING, 0, waited=34), sign(90, "computing", 0)], []),  # set-up
        ([sign(90, WAITING, 0, waited=35), sign(90, "computing", 0)], [1]),
        ([sign(90, "computing", 0), sign(90, "computing", 0)], []),
        ([sign(11, "computing", 1), sign(12, WAITING, 0)], [0]),  # the second stage waits before its first step
    ],
)
def test_names_rank_that_others_wait_for(signs, named):
    found = diagnose(dict(enumerate(signs)), LIMITS)
    assert (found.ranks if found else []) == named


def entry(number: int, kind: str = "all_reduce", finished: bool = False, group: str = "0", elements: int = 8) -> dict:
    """As torch's flight recorder has them."""
    return {
        "process_group": [group, ""],
        "profiling_name": f"nccl2:{kind}",
        "collective_seq_id": number,
        "p2p_seq_id": 1,
        "is_p2p": kind.startswith(("send", "recv")),
        "retired": finished,
        "state": "scheduled",
        "input_sizes": [[elements]],
        "input_dtypes": ["Float"],
        "time_created_ns": (time.time() - 60) * 1e9 + number,
    }


TEN = entry(9, finished=True), entry(10)
RECORDED = {
    "rank 1 has not come": ([TEN, [entry(9, finished=True)]], [1], "; rank 0 waits for it in all_reduce of float [8]"),
    "nothing of the group is left": ([TEN, []], [1], "; rank 0 waits for it in all_reduce of float [8]"),
    "another kind": ([TEN, [entry(10, "broadcast")]], [0, 1], "rank 0 all_reduce of float [8]; rank 1 broadcast of"),
    "another size": (
        [TEN, [entry(10, elements=4)]],
        [0, 1],
        "rank 0 all_reduce of float [8]; rank 1 all_reduce of float [4]",
    ),
    "another size of gradients": (
        [[entry(10, "allreduce_coalesced")], [entry(10, "allreduce_coalesced", elements=4)]],
        [0, 1],
        "rank 0 allreduce_coalesced of float [8]; rank 1 allreduce_coalesced of float [4]",
    ),
    "sizes that may differ": ([[entry(10, "all_to_all")], [entry(10, "all_to_all", elements=4)]], [0, 1], ""),
    "omitted": (
        [[entry(2), entry(4, group="1", finished=True)], [entry(1, finished=True), entry(5, group="1")]],
        *([0, 1], "wait for each other: rank 0 for rank 1 in all_reduce of float [8], rank 1 for rank 0 in all_reduce"),
    ),
    "all have come": ([TEN, TEN], [0, 1], ""),
    "a message": ([[entry(0, "recv 0<-1")], []], [1], "; rank 0 waits for it in a message from it"),
    "a message that both are in": ([[entry(0, "recv 0<-1")], [entry(0, "send 1->0")]], [0, 1], ""),
    "a batch that has ended": (
        [[entry(0, "recv 0<-1"), entry(0, "coalesced", finished=True)], TEN],
        [0],
        "; rank 1 waits",
    ),
}


@pytest.mark.parametrize(("recorded", "named", "said"), RECORDED.values(), ids=RECORDED)
def test_flight_recorder_names_rank_that_others_wait_for(recorded, named, said):
    groups = {"0": [0, 1], "1": [0, 1]}
    at = [from_entries(list(entries), groups) for entries in recorded]
    told = [Collectives.read(json.loads(json.dumps(asdict(one)))) for one in at]
    signs = {rank: Heartbeat(3, 7, 11.0, 0.0, "computing (a)", "node", 1, one) for rank, one in enumerate(told)}
    found = diagnose(signs, LIMITS)
    assert found is not None and found.ranks == named
    assert said in found.why and bool(said) == bool(found.why)


def test_the_chain_of_who_waits_ends_at_the_rank_that_stopped():
    """TP 2 x DP 2: rank 3 stopped; rank 2 waits for it over TP, rank 1 over DP, rank 0 for rank 2 over DP."""
    groups = {"tp0": [0, 1], "tp1": [2, 3], "dp0": [0, 2], "dp1": [1, 3]}
    open_in = {0: ["dp0"], 1: ["dp1"], 2: ["tp1"], 3: []}
    at = {rank: from_entries([entry(5, group=name) for name in names], groups) for rank, names in open_in.items()}
    signs = {rank: Heartbeat(3, 7, 11.0, 0.0, "computing (a)", "node", 1, one) for rank, one in at.items()}
    found = diagnose(signs, LIMITS)
    assert found is not None and found.ranks == [3]


class Ended(Exception):
    pass


def test_all_ranks_end_with_one_message(tmp_path, capsys):
    """Two watches over one store: both see rank 2, which left a sign and no more."""
    store, codes = HashStore(), []
    store.set_timeout(timedelta(seconds=5))
    store.set("sign/2", json.dumps(asdict(sign(0.1, "computing (x)"))))
    limits = Limits(1.0, 60, 60)
    watches = [HangWatch(limits, rank, 3, lambda: store, Events(str(tmp_path), rank), codes.append) for rank in (0, 1)]
    for watch in watches:
        watch.heartbeat()
        watch.start()
    deadline = time.monotonic() + 20
    while len(codes) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    for watch in watches:
        watch.stop()
    assert set(codes) == {HUNG}
    assert capsys.readouterr().err.count("error: no heartbeat") == 1
    assert [one["ranks"] for one in read_events(tmp_path)] == [[2]]


def test_rank_0_checks_before_the_first_step(tmp_path):
    """It builds something, and rank 1 has waited for that almost as long as a collective may take."""
    store, codes = HashStore(), []
    store.set("sign/1", json.dumps(asdict(sign(1.7, WAITING, 0, waited=1.7))))
    limits = Limits(60.0, set_up=2.0, training=600.0)
    watch = HangWatch(limits, 0, 2, lambda: store, Events(str(tmp_path), 0), codes.append)
    watch.start()
    deadline = time.monotonic() + 20
    while not codes and time.monotonic() < deadline:
        time.sleep(0.05)
    watch.stop()
    assert codes[:1] == [HUNG]
    told = read_events(tmp_path)[0]
    assert (told["ranks"], told["at"]) == ([0], "set-up")


def test_a_store_that_does_not_answer(tmp_path, capsys):
    """Its host is stopped: the thread that asks it never comes back, the other one speaks."""
    codes = []

    class Silent:
        def set(self, *_: object) -> None:
            time.sleep(30)

    watch = HangWatch(Limits(1.0, 60, 60), 1, 2, Silent, Events(str(tmp_path), 1), codes.append)
    watch.start()
    time.sleep(3.5)
    watch._over.set()
    assert codes and codes[0] == HUNG
    assert "from the store that rank 0's process keeps" in capsys.readouterr().err


def test_innermost_place_is_reported():
    frame = sys._getframe()
    assert doing(frame).startswith("computing (faults/test_hangs.py:")
    assert doing(None) == "computing ()"


def test_limits_leave_time_to_report():
    """Before the collectives fail: a wait is seen up to an interval late, its sign read up to two later."""
    args = {"hang_timeout": None, "distributed_timeout_minutes": 10, "distributed_timeout_seconds_after_init": None}
    for given in ({}, {"hang_timeout": 8}, {"hang_timeout": 5000}, {"distributed_timeout_minutes": 1}):
        limits = hang_limits(SimpleNamespace(**args | given))
        for begun in (False, True):
            assert 0.8 * limits.set_up <= limits.patience(begun) <= limits.set_up - 3 * limits.interval - 0.5
    limits = hang_limits(SimpleNamespace(**args | {"distributed_timeout_seconds_after_init": 100}))
    assert (limits.timeout, limits.set_up, limits.training) == (50, 600, 100)


def test_a_wait_is_that_in_one_collective(monkeypatch):
    """Another collective at the same place is another wait; so is the same after something else."""
    clock, begun, frames = [0.0], [3], {}
    monkeypatch.setattr(main_thread_state.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(main_thread_state, "collectives_begun", lambda: begun[0])
    exec(compile("frame = sys._getframe()", "/torch/distributed/distributed_c10d.py", "exec"), {"sys": sys}, frames)
    wait, observed = Wait(), []
    for number, frame in [(3, 1), (3, 1), (4, 1), (4, 1), (4, 0), (4, 1), (4, 1)]:
        clock[0], begun[0] = clock[0] + 5, number
        observed.append(wait.observe(frames["frame"] if frame else sys._getframe()))
    assert observed == [0, 5, 0, 5, 0, 0, 5]
