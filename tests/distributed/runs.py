"""Runs of training ranks: started, compared, refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from megatron_cod.analysis.metrics import TRAIN_LOSS, VALID_LOSS, read_metrics
from tests.distributed.launch import Ended, run_training_ranks

PP2 = ["--pipeline-model-parallel-size", "2"]


def succeed(world: int, flags: list[str]) -> list[Ended]:
    ended = run_training_ranks(world, flags)
    assert [rank.code for rank in ended] == [0] * world, "\n----\n".join(rank.output[-2500:] for rank in ended)
    return ended


def losses(folder):
    metrics = read_metrics(folder / "metrics.jsonl")
    return {**metrics.scalars[TRAIN_LOSS]}, {**metrics.scalars[VALID_LOSS]}


def refuse(
    world: int, flags: list[str], pattern: str, before: Callable[[], None] | None = None, entry: str = "pretrain"
) -> None:
    """The run ends with one error line that matches, from rank 0 alone, and without a traceback."""
    ended = run_training_ranks(world, flags, timeout=120, before=before, entry=entry)
    errors = [line for rank in ended for line in rank.output.splitlines() if line.startswith("error: ")]
    assert ended[0].code == 2, ended[0].output[-2000:]
    assert len(errors) == 1, errors
    assert re.search(pattern, errors[0]), errors[0]
    assert not any("Traceback" in rank.output for rank in ended)


TOLERANCE = 1e-5


def at_step_4(whole: Path, folder: Path) -> Path:
    """A run of 8 steps as it was on disk after step 4."""
    shutil.copytree(whole / "iter_0000004", folder / "iter_0000004")
    (folder / "latest_checkpointed_iteration.txt").write_text("4")
    return folder


def losses_of(folder) -> dict[int, float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {one["step"]: one["value"] for one in records if one["name"] == "lm loss"}
