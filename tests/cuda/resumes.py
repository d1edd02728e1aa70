"""Runs that save, and are resumed at the same or another layout, on the same or the other kind of device."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_cod.analysis.metrics import TRAIN_LOSS, read_metrics
from tests.cuda.runs import DEBUG, Run, train, train_on_cpu

SMALL = (
    *DEBUG,
    *("--num-layers", "2", "--hidden-size", "32", "--ffn-hidden-size", "64"),
    *("--seq-length", "32", "--max-position-embeddings", "32"),
)
"""Two layers that train 4 steps in a second or two."""
DP2 = ("--micro-batch-size", "1")
"""With two ranks: each a replica."""
DISTRIBUTED = "--use-distributed-optimizer"


def launch(world: int, save: Path, *flags: str, device: str = "cuda", before: Callable[[], None] | None = None) -> Run:
    """A run of ``SMALL`` on GPUs or CPU processes that writes to ``save``."""
    words = [*SMALL, "--save", str(save), *flags]
    return (
        train_on_cpu(world, *words, before=before)
        if device == "cpu"
        else train(world, save / "emulation", *words, before=before)
    )


@dataclass(frozen=True)
class Saved:
    """A whole run of 4 steps, and its directory as it was after step 2."""

    whole: dict[int, float]
    stopped: Path


def losses(folder: Path) -> dict[int, float]:
    """Step -> loss, unrounded."""
    return dict(read_metrics(folder / "metrics.jsonl").scalars[TRAIN_LOSS])


def save(folder: Path, world: int, *flags: str, device: str = "cuda") -> Saved:
    """Train 4 steps and save every second."""
    launch(world, folder / "whole", *flags, "--save-interval", "2", device=device).succeeded()
    stopped = folder / "stopped"
    shutil.copytree(folder / "whole" / "iter_0000002", stopped / "iter_0000002")
    (stopped / "latest_checkpointed_iteration.txt").write_text("2")
    return Saved(losses(folder / "whole"), stopped)


def difference(
    saved: Saved, folder: Path, world: int, *flags: str, device: str = "cuda", before: Callable[[], None] | None = None
) -> float:
    """Resume at step 2 with these flags: the largest difference of a loss to the unbroken run."""
    launch(world, folder, *flags, "--load", str(saved.stopped), device=device, before=before).succeeded()
    found = losses(folder)
    assert sorted(found) == [3, 4]
    return max(abs(loss - saved.whole[step]) for step, loss in found.items())
