"""Does depth pay, and at which learning rate? A study of norm schemes with tuned rates and paired seeds, from one file.

    python tools/depth_study.py recipes/studies/cpu_1m.yaml --plan        # what it will cost; trains a few timed steps
    python tools/depth_study.py recipes/studies/cpu_1m.yaml --jobs 2      # run it; repeat the command to resume it
    python tools/depth_study.py recipes/studies/cpu_1m.yaml --status
    python tools/depth_study.py recipes/studies/cpu_1m.yaml --report      # also written when a start of the study ends
    python tools/depth_study.py recipes/studies/gpu_10m.yaml --slurm      # write an array of the runs that are known
    python tools/depth_study.py recipes/studies/cpu_1m.yaml --report --raw docs/results/cpu_1m --output again

Every arm is tuned over the same grid of rates, which grows where the best rate is at its edge, and runs again with fresh
seeds at its best rate; docs/studies.md has the keys of a study file and what the report's columns mean.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import megatron_cod.training.before_megatron  # noqa: F401 (before Megatron: its warnings)
from megatron_cod.errors import UserError, run_tool
from megatron_cod.study.command import Command

show = partial(print, flush=True)


def parse_args(command_line: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="the study file")
    parser.add_argument("--output", type=Path, help="directory of the study (default: runs/studies/NAME of the file)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time on this machine (%(default)s)")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--plan", action="store_true", help="print runs, tokens, FLOPs and time; run no study")
    actions.add_argument("--status", action="store_true", help="print what is done, running and failed")
    actions.add_argument("--report", action="store_true", help="write the report of what is there")
    actions.add_argument("--slurm", action="store_true", help="write a Slurm array of the runs that are known")
    parser.add_argument(
        "--raw", type=Path, metavar="DIR", help="with --report: the records of another report, not runs"
    )
    args = parser.parse_args(command_line)
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs} must be at least 1")
    if args.raw and not args.report:
        raise UserError("--raw goes with --report")
    args.output = args.output or Path("runs/studies") / args.study.stem
    return args


def main() -> None:
    args = parse_args()
    command = Command(args.study, args.output.resolve(), args.jobs, show)
    if args.plan:
        command.plan()
    elif args.status:
        command.status()
    elif args.raw:
        command.report_of(args.raw)
    elif args.report:
        command.report()
    elif args.slurm:
        command.slurm()
    else:
        command.run()


if __name__ == "__main__":
    run_tool(main)
