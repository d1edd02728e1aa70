"""``--rewind-to STEP --rewind-skip K``: resume from an older checkpoint of ``--save``, past the data of K steps.

The remedy for a loss spike that does not recover: back to before it, and other data from there on. A rewind is done once:
it is recorded beside the checkpoints, so that the same command line, queued again, resumes from the newest checkpoint. The
data it passed over stays passed over.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from megatron_cod.args import MegatronArgs
from megatron_cod.checkpoint.directory import (
    TRACKER,
    iterations,
    same_directory,
    write_tracker,
)
from megatron_cod.checkpoint.rewinds import REWINDS, REWOUND, Rewind, pending
from megatron_cod.errors import UserError
from megatron_cod.training.flags.batch_sizes import batch_sizes


def check_rewind(args: MegatronArgs) -> None:
    """UserError for a rewind that makes no sense. args: the plain parse of the command line."""
    if args.rewind_to is None:
        if args.rewind_skip:
            raise UserError(f"--rewind-skip {args.rewind_skip} needs --rewind-to STEP")
        return
    if not same_directory(args.save, args.load):
        raise UserError("--rewind-to takes --load and --save of the same directory: that of the run to be rewound")
    if args.rewind_skip and args.dataloader_type == "cyclic":
        raise UserError("--rewind-skip does not go with --dataloader-type cyclic, which draws a new order")
    if args.ckpt_step:
        raise UserError("give --rewind-to or --ckpt-step, not both")
    if args.phase_transition_iterations:
        raise UserError("--rewind-to does not go with --phase-transition-iterations, where samples are counted again")


def perform(args: MegatronArgs, consumed: int) -> str | None:
    """Do a pending rewind, for rank 0 alone; the line that reports it. consumed: samples behind the checkpoint.

    The tracker comes first: a reader in between, another rank or a new start after a kill, resumes from the same
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
