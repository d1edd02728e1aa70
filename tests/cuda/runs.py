"""Training runs on emulated devices, in ranks forked from a process that has Megatron imported (3 seconds each)."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.conftest import ROOT
from tests.cuda.cpu_side import call_on_cpu
from tests.distributed.launch import Ended, run_training_ranks

DEBUG = (
    *("--recipe", str(ROOT / "recipes" / "debug.yaml"), "--num-layers", "4", "--train-iters", "4"),
    *("--log-interval", "1", "--eval-iters", "0", "--save-interval", "1000"),
    *("--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", "255"),
)
"""Flags of a run of seconds without data; flags after these overrule them."""

_STEP = re.compile(r"^step +\d+/\d+ \| loss ([0-9.naif]+)", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """How a run ended: per rank the exit code, what it printed, and the emulation's report (name -> how often)."""

    ranks: list[Ended]
    reports: list[dict[str, int]]

    @property
    def code(self) -> int:
        return next((rank.code for rank in self.ranks if rank.code), 0)

    @property
    def console(self) -> str:
        return "\n".join(rank.output for rank in self.ranks)

    @property
    def losses(self) -> list[float]:
        return [float(value) for value in _STEP.findall(self.ranks[0].output)]

    @property
    def error(self) -> str:
        """The first line ``error: ...`` of any rank, or an empty text."""
        return next((line for line in self.console.splitlines() if line.startswith("error")), "")

    def refused(self, *words: str) -> bool:
        """Whether the run ended before its first step with one line that has all the words."""
        one_line = self.code == 2 and sum(line.startswith("error") for line in self.console.splitlines()) == 1
        return one_line and not self.losses and all(word in self.error for word in words)

    def succeeded(self) -> "Run":
        assert self.code == 0, self.console[-6000:]
        return self


def _on_gpu(mode: str, folder: Path, before: Callable[[], None] | None) -> None:
    import fakecuda  # on the path of processes under the emulation only

    fakecuda.begin_rank(mode, str(folder / "emulation"))
    if before is not None:
        before()


def _read(path: Path) -> dict[str, int]:
    if not path.exists():
        return {}
    lines = (line.split("\t", 1) for line in path.read_text().splitlines())
    return {name: int(number) for number, name in lines}


def train(
    world: int,
    folder: Path,
    *flags: str,
    entry: str = "pretrain",
    mode: str = "numerics,report",
    before: Callable[[], None] | None = None,
    timeout: float = 240.0,
) -> Run:
    """A training entry on ``world`` emulated devices. flags: all of them (``*DEBUG`` and others).

    folder: where reports go. before: called in each rank first, to put a mutant in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ranks = run_training_ranks(world, list(flags), timeout, partial(_on_gpu, mode, folder, before), entry)
    return Run(ranks, [_read(folder / f"emulation.{rank}") for rank in range(world)])


def train_on_cpu(
    world: int, *flags: str, entry: str = "pretrain", before: Callable[[], None] | None = None, timeout: float = 240.0
) -> Run:
    """The same on CPU processes, as on a machine without a GPU."""
    return Run(call_on_cpu(run_training_ranks, world, list(flags), timeout, before, entry), [])
