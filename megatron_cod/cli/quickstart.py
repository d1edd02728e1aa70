"""Train a 24-layer model over a pipeline of processes: LayerNorm Scaling and Pre-LN, each at two learning rates.

    megatron-cod quickstart                          # in a checkout: make quickstart
    megatron-cod quickstart --steps 2000       # longer
    megatron-cod quickstart --pp 2 --tp 2      # four processes; --dp 2 doubles them again
    megatron-cod quickstart --recipe llama_60m --dp 8 --data PREFIX   # on GPUs, the same command

The arms see the same tokens in the same order: LayerNorm Scaling; Pre-LN with plain initialisation (the paper's
baseline); Pre-LN as Megatron ships it, with scaled initialisation. Each runs at two peak learning rates, since one says
little about a norm scheme. Losses are printed as measured. A finished run is kept when the command is repeated; --fresh
trains it again.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from megatron_cod.cli.parsing import Parser
from megatron_cod.errors import UserError, run_tool


def _rates(text: str) -> list[float]:
    """Raises ArgumentTypeError for what is no list of different positive numbers."""
    try:
        rates = [float(word) for word in text.split(",")]
    except ValueError:
        rates = []
    if not rates or len({*rates}) < len(rates) or not all(0 < rate < math.inf for rate in rates):
        raise argparse.ArgumentTypeError(f"{text} is no list of different positive numbers, such as 4e-3,1.6e-2")
    return sorted(rates)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--recipe", default="debug", metavar="NAME", help="recipe of the package, or a path (%(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="directory (%(default)s)")
    parser.add_argument(
        "--data", metavar="PREFIX", help="PREFIX_{train,valid}_text_document (default: the sample corpus)"
    )
    parser.add_argument(
        "--steps", type=int, help="training steps of each run (default: 72 for the recipe debug; else the recipe's)"
    )
    parser.add_argument(
        "--rates",
        type=_rates,
        metavar="LR,LR",
        help="peak learning rates of each arm (default: 4e-3,1.6e-2 for recipe debug; else the recipe's and 4 times it)",
    )
    parser.add_argument("--pp", type=int, help="pipeline stages (2)")
    parser.add_argument("--tp", type=int, help="tensor-parallel ranks (1)")
    parser.add_argument("--dp", type=int, help="data-parallel replicas (1)")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--fresh", action="store_true", help="train arms again that are already finished")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run")
    parser.add_argument("flags", nargs="*", help="Megatron flags for every arm, after --")
    return parser


def parse_args() -> argparse.Namespace:
    args = build_parser().parse_args()
    args.layout_given = any(one is not None for one in (args.pp, args.tp, args.dp))
    args.pp, args.tp, args.dp = (
        default if one is None else one for one, default in ((args.pp, 2), (args.tp, 1), (args.dp, 1))
    )
    if min(args.pp, args.tp, args.dp, 1 if args.steps is None else args.steps) < 1:
        raise UserError("--pp, --tp, --dp and --steps must be at least 1")
    return args


def main() -> None:
    args = parse_args()
    # After parsing, so that --help and wrong options answer at once.
    from megatron_cod.cli.quickstart_runs import quickstart

    quickstart(args)


if __name__ == "__main__":
    run_tool(main)
