"""``--rewind-to STEP --rewind-skip K``: go on from an older checkpoint of ``--save``, past the data of K steps.

What is done to a loss spike that does not heal: back to before it, and other data from there on. A rewind is done once: it
is recorded beside the checkpoints, so that the same command line, queued again, goes on from the newest checkpoint. The
data it passed over stays passed over.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_cod.args import MegatronArgs
from megatron_cod.checkpoint_files import (
    TRACKER,
    check_files,
    iteration_name,
    iterations,
    same_directory,
    write_tracker,
)
from megatron_cod.errors import UserError
from megatron_cod.training.batch_sizes import batch_sizes

REWINDS = "rewinds.jsonl"
REWOUND = "rewound-"


@dataclass(frozen=True)
class Rewind:
    """One rewind of a run: to which step, over how many steps' data, and the samples that this is."""

    to: int
    skip: int
    first_sample: int
    """Samples consumed at that step: a place in the data that rewinds before this one left."""
    samples: int
    """How many are passed over from there."""


def read_rewinds(save: str | Path) -> list[Rewind]:
    """All rewinds of a run, in the order they were done. UserError for a file that cannot be read."""
    path = Path(save) / REWINDS
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        return [Rewind(**{key: value for key, value in line.items() if key != "time"}) for line in lines]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def check_rewind(args: MegatronArgs) -> None:
    """UserError for a rewind that makes no sense. args: the plain parse of the command line."""
    if args.rewind_to is None:
        if args.rewind_skip:
            raise UserError(f"--rewind-skip {args.rewind_skip} needs --rewind-to STEP")
        return
    if not same_directory(args.save, args.load):
        raise UserError("--rewind-to takes --load and --save of the same directory: that of the run to be rewound")
    if args.rewind_skip and args.dataloader_type == "cyclic":
        raise UserError("--rewind-skip does not go with --dataloader-type cyclic, whose order is drawn anew")
    if args.ckpt_step:
        raise UserError("give --rewind-to or --ckpt-step, not both")
    if args.phase_transition_iterations:
        raise UserError("--rewind-to does not go with --phase-transition-iterations, where samples are counted anew")


def pending(args: MegatronArgs) -> Path | None:
    """The checkpoint of a rewind that is asked for and not done yet, else None.

    Raises UserError when it is not there, or not whole.
    """
    if args.rewind_to is None:
        return None
    assert args.save is not None  # check_rewind
    done = [(one.to, one.skip) for one in read_rewinds(args.save)]
    if (args.rewind_to, args.rewind_skip) in done:
        return None
    checkpoint = Path(args.save) / iteration_name(args.rewind_to)
    if not checkpoint.is_dir():
        there = ", ".join(str(number) for number in iterations(args.save)) or "none"
        raise UserError(f"--rewind-to {args.rewind_to}: no such checkpoint in {args.save}, there are {there}")
    check_files(checkpoint)
    return checkpoint


def perform(args: MegatronArgs, consumed: int) -> str | None:
    """Do a pending rewind, for rank 0 alone; the line that tells of it. consumed: samples behind the checkpoint.

    The tracker comes first: whoever looks in between, another rank or a new start after a kill, goes on from the same
    checkpoint. Newer ones are kept under names that nothing loads.
    """
    checkpoint = pending(args)
    if checkpoint is None or args.save is None or args.rewind_to is None:
        return None
    save = Path(args.save)
    newer = [path for step, path in iterations(save).items() if step > args.rewind_to]
    write_tracker(save, str(args.rewind_to))
    skipped = batch_sizes(args).after(args.rewind_skip, consumed) - consumed
    rewind = Rewind(args.rewind_to, args.rewind_skip, consumed, skipped)
    with (save / REWINDS).open("a") as file:
        file.write(json.dumps({**asdict(rewind), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}) + "\n")
    for path in newer:
        path.rename(_free(path.with_name(REWOUND + path.name)))
    past = f", past the data of {rewind.skip} steps" if rewind.skip else ""
    kept = f"; {len(newer)} newer checkpoints kept as {REWOUND}iter_N" if newer else ""
    return f"rewound to step {rewind.to}{past} ({TRACKER} names it now){kept}"


def _free(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number, free = number + 1, path.with_name(f"{path.name}.{number}")
    return free


class _Gaps:
    """Samples of a dataset that are left out: runs of them, apart and in order, by their places in the whole dataset."""

    def __init__(self) -> None:
        self._gaps: list[tuple[int, int]] = []  # first sample, and the one after the last
        # The index of the first sample after a gap, where those left out are not counted; samples left out up to there.
        self._after: list[int] = []
        self._left_out: list[int] = [0]

    def place(self, index: int) -> int:
        """Where a sample stands in the dataset. index: its number among those that are not left out."""
        return index + self._left_out[bisect.bisect_right(self._after, index)]

    def leave_out(self, index: int, count: int) -> None:
        """Leave out more: so many from this index on."""
        first, end = self.place(index), self.place(index + count - 1) + 1
        self._gaps = sorted([*(gap for gap in self._gaps if not first <= gap[0] < end), (first, end)])
        self._left_out = [0, *itertools.accumulate(end - first for first, end in self._gaps)]
        self._after = [first - before for (first, _), before in zip(self._gaps, self._left_out, strict=False)]


class PassedOver:
    """A training set without the samples that rewinds pass over; the same index gives the same sample at every start."""

    def __init__(self, dataset: Any, rewinds: Sequence[Rewind]) -> None:
        """rewinds: in the order they were done. Each is counted in the data that those before it left."""
        self._dataset, self._gaps = dataset, _Gaps()
        for one in rewinds:
            if one.samples:
                self._gaps.leave_out(one.first_sample, one.samples)
        self._samples = sum(one.samples for one in rewinds)

    def __len__(self) -> int:
        return len(self._dataset) - self._samples

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._gaps.place(index)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)


def passing_over(provider: Callable[..., Any], save: str | None) -> Callable[..., Any]:
    """Megatron's dataset provider, with what rewinds of ``save`` pass over left out of the training set."""

    @functools.wraps(provider)  # takes its mark ``is_distributed`` along
    def passing(counts: Sequence[int], *rest: Any, **kwargs: Any) -> Any:
        rewinds = [one for one in read_rewinds(save) if one.samples] if save else []
        if not rewinds:
            return provider(counts, *rest, **kwargs)
        wanted = [counts[0] + sum(one.samples for one in rewinds), *counts[1:]]
        train, *others = provider(wanted, *rest, **kwargs)
        return (None if train is None else PassedOver(train, rewinds), *others)

    return passing
