"""Does depth pay, and at which learning rate? A study of norm schemes with tuned rates and paired seeds, from one file.

    megatron-cod study cpu_1m --plan        # what it will cost; trains a few timed steps
    megatron-cod study cpu_1m --jobs 2      # run it; repeat the command to resume it
    megatron-cod study cpu_1m --status
    megatron-cod study cpu_1m --report      # also written when a start of the study ends
    megatron-cod study gpu_10m --slurm      # write an array of the runs that are known
    megatron-cod study cpu_1m --report --raw docs/results/cpu_1m --output again
    megatron-cod study cpu_1m --raw docs/results/cpu_1m   # on another machine: import the runs of a report, resume

Every arm is tuned over the same grid of rates, which grows where the best rate is at its edge, and runs again with fresh
seeds at its best rate; docs/studies.md has the keys of a study file and what the report's columns mean.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from megatron_cod.cli.parsing import Parser
from megatron_cod.errors import UserError, run_tool
from megatron_cod.shipped import STUDIES, find

show = partial(print, flush=True)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("study", type=Path, help="a study file, or the name of one of the package")
    parser.add_argument("--output", type=Path, help="directory of the study (default: runs/studies/NAME of the file)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time on this machine (%(default)s)")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--plan", action="store_true", help="print runs, tokens, FLOPs and time; run no study")
    actions.add_argument("--status", action="store_true", help="print what is done, running and failed")
    actions.add_argument("--report", action="store_true", help="write the report of what is there")
    actions.add_argument("--slurm", action="store_true", help="write a Slurm array of the runs that are known")
    parser.add_argument(
        "--raw",
        type=Path,
        metavar="DIR",
        help="import the finished runs of this report of the study; with --report: report on them alone",
    )
    return parser


def parse_args(command_line: Sequence[str] | None = None) -> argparse.Namespace:
    args = build_parser().parse_args(command_line)
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs} must be at least 1")
    if args.raw and (args.plan or args.status or args.slurm):
        raise UserError("--raw goes with a run or with --report")
    args.study = find(args.study, STUDIES, "study")
    args.output = args.output or Path("runs/studies") / args.study.stem
    return args


def main() -> None:
    args = parse_args()
    # After parsing, so that --help and wrong options answer at once; first, as Megatron reads what it prepares.
    from megatron_cod.training import before_megatron  # noqa: F401, I001
    from megatron_cod.study.command import Command

    command = Command(args.study, args.output.resolve(), args.jobs, show)
    if args.plan:
        command.plan()
    elif args.status:
        command.status()
    elif args.raw and args.report:
        command.report_of(args.raw)
    elif args.report:
        command.report()
    elif args.slurm:
        command.slurm()
    else:
        command.run(args.raw)


if __name__ == "__main__":
    run_tool(main)
