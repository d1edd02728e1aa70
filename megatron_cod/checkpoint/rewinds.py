"""The rewinds of a run, recorded beside its checkpoints in ``rewinds.jsonl``, and the one that is still to be done."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from megatron_cod.args import MegatronArgs
from megatron_cod.checkpoint.directory import (
    check_files,
    iteration_name,
    iterations,
)
from megatron_cod.errors import UserError

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


def pending(args: MegatronArgs) -> Path | None:
    """The checkpoint of a requested rewind that is not done yet, else None.

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
