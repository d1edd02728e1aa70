"""Merge checkpoints of a run: a weighted average of their weights, which replaces a decay of the learning rate.

    megatron-cod merge --run runs/first --last 4 --output runs/merged
    megatron-cod merge --run runs/first --steps 800 900 1000 --weights minus-sqrt --output runs/merged
    megatron-cod evaluate --load runs/merged --eval-data PATH

--weights: equal, a mean, as after a linear decay; linear, 1, 2, ... n; minus-sqrt, as after a decay by 1 - sqrt(t); ema,
each older one counts --ema-decay times the next. Members may have different layouts; they must compute the same function.
The fp32 copies of the optimizer are averaged where they were saved. The result has no optimizer state: --load takes it as
it takes an imported model, and megatron-cod convert exports it. docs/merging.md has more.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from megatron_cod.cli.parsing import Parser
from megatron_cod.errors import UserError, run_tool
from megatron_cod.schemes.imports import add_import_flag

METHODS = ("equal", "linear", "minus-sqrt", "ema")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="what --save named")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--last", type=int, metavar="N", help="the newest N checkpoints (default: all)")
    which.add_argument("--steps", type=int, nargs="+", metavar="STEP", help="those of these steps")
    parser.add_argument("--weights", choices=METHODS, default="equal", help="of the members (default: %(default)s)")
    parser.add_argument("--ema-decay", type=float, default=0.8, metavar="X", help="with ema (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory to make")
    add_import_flag(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the members and their weights, write nothing")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    if args.last is not None and args.last < 2:
        raise UserError(f"--last {args.last} must be at least 2")
    # After parsing, so that --help answers at once; first, as Megatron reads what it prepares.
    from megatron_cod.training import before_megatron  # noqa: F401, I001
    from megatron_cod.merging import MergeJob, members_of, merge, weights_of

    members = members_of(args.run, args.last, args.steps)
    if args.dry_run:
        for path, weight in zip(members, weights_of(args.weights, len(members), args.ema_decay), strict=True):
            print(f"{weight:.4f}  {path}")
        return
    merge(MergeJob(members, args.output, args.weights, args.ema_decay), partial(print, flush=True))
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run_tool(main)
