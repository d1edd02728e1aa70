"""Is LayerNorm Scaling better than what you run, on your data, at your size? Train the candidates and print the table.

    megatron-cod compare-schemes --recipe debug --schemes pre_ln+normal,pre_ln,lns --seeds 1,2
    megatron-cod compare-schemes --recipe llama_130m --data c4/en --schemes all --seeds 1,2,3 --dp 8
    megatron-cod compare-schemes --list

Every arm sees the same tokens in the same order at the same seed. Arms are trained one after another; a stopped
comparison continues where it was when the command is repeated. An arm is a norm scheme, with flags after +:
lns+gamma-init, pre_ln+init-policy=normal (or pre_ln+normal), lns+lns-placement=attention, lns+residual-warmup-steps=50.
What is written: results.md, results.csv, comparison.png, commands.sh, and a directory for every run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_cod.cli.parsing import Parser
from megatron_cod.errors import UserError, run_tool
from megatron_cod.schemes.imports import add_import_flag


class _List(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from megatron_cod.cli.scheme_comparison import list_schemes

        list_schemes()
        parser.exit()


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,2,3") from None
    if min(seeds) < 1 or len(set(seeds)) != len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r}: seeds are at least 1, and each is given once")
    return seeds


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="YAML of the model and its optimisation")
    parser.add_argument("--schemes", default="all", metavar="A,B,C", help="arms, or all (default: all)")
    add_import_flag(parser)
    parser.add_argument("--seeds", type=_seeds, default=[1, 2, 3], metavar="1,2,3", help="(default: 1,2,3)")
    parser.add_argument("--output", type=Path, default=Path("runs/schemes"), help="directory (%(default)s)")
    parser.add_argument(
        "--data", metavar="PREFIX", help="PREFIX_{train,valid}_text_document (default: the sample corpus)"
    )
    parser.add_argument("--steps", type=int, help="training steps of each run (default: the recipe's)")
    parser.add_argument("--pp", type=int, default=1, help="pipeline stages (%(default)s)")
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel ranks (%(default)s)")
    parser.add_argument("--dp", type=int, default=1, help="data-parallel replicas (%(default)s)")
    parser.add_argument("--save-interval", type=int, help="steps between checkpoints (default: a quarter of the run)")
    parser.add_argument("--fresh", action="store_true", help="train runs again that are already finished")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run")
    parser.add_argument("--list", action=_List, nargs=0, help="print the norm schemes and end")
    parser.add_argument("flags", nargs="*", help="Megatron flags for every run, after --")
    return parser


def parse_args(command_line: Sequence[str] | None = None) -> argparse.Namespace:
    args = build_parser().parse_args(command_line)
    if min(args.pp, args.tp, args.dp, args.steps or 1, args.save_interval or 1) < 1:
        raise UserError("--pp, --tp, --dp, --steps and --save-interval must be at least 1")
    return args


def main() -> None:
    args = parse_args()
    # After parsing, so that --help and wrong options answer at once.
    from megatron_cod.cli.scheme_comparison import compare

    compare(args)


if __name__ == "__main__":
    run_tool(main)
