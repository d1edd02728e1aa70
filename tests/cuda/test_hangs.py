"""Over NCCL as over gloo: who stops is named, not who waits for it; ranks whose collectives differ are named with both."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest

from megatron_cod.checkpoint.events import read_events
from megatron_cod.training.faults.hangs import HUNG
from tests.cuda.runs import DEBUG, Run, train
from tests.distributed.kills import kill_and_go_on
from tests.training.faults.mutants import OtherCollective, Stuck, StuckIn, StuckLayer

LIMIT = 20
"""--hang-timeout of these runs, in seconds: longer than a step takes on a busy machine."""
SMALL = (
    *("--num-layers", "2", "--hidden-size", "32", "--ffn-hidden-size", "64", "--num-attention-heads", "2"),
    *("--seq-length", "32", "--max-position-embeddings", "32", "--micro-batch-size", "1", "--global-batch-size", "2"),
)
LONG = (
    *(*DEBUG, *SMALL, "--train-iters", "2000", "--lr-decay-iters", "2000"),
    *("--hang-timeout", str(LIMIT)),
)
TP2 = ("--tensor-model-parallel-size", "2")
PP2 = ("--pipeline-model-parallel-size", "2")
LAYOUTS = {"dp2": (), "pp2": PP2, "tp2": TP2}
STUCK = {"data": lambda rank: Stuck(rank, 3, "loading"), "compute": lambda rank: StuckLayer(rank, 3)}
WHERE = {
    "data": r"loading data \(faults/mutants.py:\d+ __next__\)",
    "compute": r"computing \(faults/mutants.py:\d+ stuck\)",
}


@dataclass(frozen=True)
class Hanging:
    """Collectives that differ hang, as NCCL's do; and the rank notes when the step of the trouble begins."""

    trouble: Callable[[], Any]

    def __call__(self) -> None:
        os.environ["FAKECUDA_MISMATCH"] = "hang"
        self.trouble()


def hung(folder, layout: tuple[str, ...], trouble: Callable[[], Any], *flags: str) -> tuple[Run, str]:
    """A run of two ranks that ends as hung; its one error line."""
    run = train(2, folder, *LONG, *layout, "--save", str(folder / "run"), *flags, before=Hanging(trouble))
    assert HUNG in [rank.code for rank in run.ranks], run.console[-5000:]
    errors = [line for line in run.console.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, errors
    return run, errors[0]


def seconds_of(line: str) -> int:
    return int(re.search(r"no progress for (\d+) s", line)[1])


READS_NO_DATA = ("tp2", "data", 1)
"""Of ranks that share a layer's tensors the first reads the data, and sends it to the others."""
CASES = [case for case in product(LAYOUTS, STUCK, (0, 1)) if case != READS_NO_DATA]


@pytest.mark.parametrize(("layout", "how", "rank"), CASES, ids=[f"{c[0]} {c[1]} rank {c[2]}" for c in CASES])
@pytest.mark.slow
def test_the_rank_that_is_waited_for_is_named(layout, how, rank, tmp_path):
    _, line = hung(tmp_path, LAYOUTS[layout], STUCK[how](rank))
    assert re.search(
        rf"no progress for \d+ s from rank {rank} on \S+ \(pid \d+, {WHERE[how]}\)[^(]*; the job ends$", line
    ), line
    if layout != "pp2":  # the recorder has no end of a batch of messages: there the line of Python that waits decides
        assert f"rank {1 - rank} waits for it in " in line, line
    assert LIMIT <= seconds_of(line) <= 2 * LIMIT
    recorded = [one for one in read_events(tmp_path / "run") if one["event"] == "hang"]
    assert [one["ranks"] for one in recorded] == [[rank]]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("layout", ["dp2", "tp2"])
@pytest.mark.parametrize("how", ["omitted", "kind", "size"])
@pytest.mark.slow
def test_ranks_whose_collectives_differ_are_named(layout, how, rank, tmp_path):
    _, line = hung(tmp_path, LAYOUTS[layout], OtherCollective(rank, 3, how))
    assert re.search(r"from rank 0 on \S+ \(pid .*\), rank 1 on \S+ \(pid ", line), line
    assert re.search("which are in different collectives: |which wait for each other: ", line), line


@pytest.mark.parametrize(
    ("stuck", "doing"),
    [
        (StuckIn("megatron.training.checkpointing", "dist_checkpointing.save", 1), "saving a checkpoint"),
        (StuckIn("megatron_cod.training.data.batches", "BlendedMegatronDatasetBuilder.build", 1), "building datasets"),
    ],
    ids=["save", "set-up"],
)
@pytest.mark.slow
def test_a_hang_in_set_up_or_a_save_is_named_before_a_collective_fails(stuck, doing, tmp_path):
    """The collectives wait for a minute; the wait is read from the recorder, as no line of rank 0 is known to wait."""
    flags = ("--distributed-timeout-minutes", "1", "--hang-timeout", "40", "--save-interval", "2")
    _, line = hung(tmp_path, (), stuck, *flags)
    assert re.search(rf"no progress for \d+ s from rank 1 on \S+ \(pid \d+, {doing}", line), line


@pytest.mark.slow
def test_a_killed_rank_ends_the_others(tiny, tmp_path):
    """Rank 0 then waits for a message in the device's queue, where no signal of the launcher reaches Python."""
    kill_and_go_on([*tiny], tmp_path / "run", victim=1)
