"""What a launch would do, before it does it: who holds which layers, how much memory, how long stages wait.

    megatron-cod rehearse --world-size 4096 --recipe llama_7b \\
        --tensor-model-parallel-size 8 --pipeline-model-parallel-size 8 --sequence-parallel
    megatron-cod rehearse --world-size 4096 --run-rank 1027 --shrink --recipe llama_7b ...
    megatron-cod rehearse --world-size 64 --all-stages --shrink --json plan.json --recipe ...
    megatron-cod rehearse --world-size 4096 --time --machine h100 --recipe llama_7b ...
    megatron-cod rehearse --world-size 4096 --suggest --machine h100 --recipe llama_7b --global-batch-size 2048

The flags below are this tool's. All others are the launch's, exactly as they follow
`torchrun ... -m megatron_cod.training.pretrain`. Without --run-rank or --all-stages nothing is built: the plan comes from
the arguments alone, in seconds. No GPU and no other process is needed. docs/rehearsal.md has the formulas.

Exit code: 0 in order, 1 a rank was built otherwise than planned (the line names its stage), 2 the launch would be refused,
3 it would start, but its architecture is not counted here yet.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_cod.cli.parsing import Parser
from megatron_cod.cli.rehearse_time import named_machine, predict, print_suggestion
from megatron_cod.common.numbers import number_or_nan
from megatron_cod.errors import UserError, run_tool

if TYPE_CHECKING:
    from megatron_cod.rehearsal.launch import Launch
    from megatron_cod.rehearsal.plan import Plan
    from megatron_cod.rehearsal.worker import RankReport

_NOT_PLANNED = 3
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def _tokens(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT]?)", text.upper())
    if not found or not (count := round(float(found[1]) * _UNITS[found[2]])):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens such as 20B or 500M")
    return count


def _gib(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of GiB above 0")
    return size * 2**30


def _device_memory(asked: float | None) -> float | None:
    """Bytes of the device that is asked for, else of this machine's."""
    import torch

    if asked is None and torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return asked


def _at_least(least: int) -> Any:
    def number(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least {least}")
        return int(text)

    return number


def _above_zero(text: str) -> float:
    value = number_or_nan(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _add_time_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("time (docs/planner.md)")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--time", action="store_true", help="predict the time of a step on --machine, and where it goes")
    which.add_argument(
        "--suggest",
        action="store_true",
        help="search the layouts that are accepted and fit: the ten fastest, and why the next ones are slower",
    )
    group.add_argument(
        "--machine",
        metavar="NAME|FILE",
        help="a100_80gb, h100, h200 or b200: nodes of 8 GPUs; or a YAML file with its numbers",
    )
    group.add_argument(
        "--gpu-mtbf",
        type=_above_zero,
        metavar="HOURS",
        help="mean hours between failures of one GPU: --time prints goodput",
    )
    group.add_argument(
        "--save-seconds",
        type=_above_zero,
        default=60.0,
        metavar="S",
        help="training waits for a checkpoint (default 60)",
    )
    group.add_argument(
        "--restart-seconds",
        type=_above_zero,
        default=600.0,
        metavar="S",
        help="from a failure until training resumes (default 600)",
    )


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        description=__doc__,
        usage="%(prog)s --world-size N [flags below] [flags of the launch]",
    )
    parser.add_argument("--world-size", type=_at_least(1), metavar="N", help="GPUs, one process each, of the launch")
    parser.add_argument(
        "--tokens", type=_tokens, metavar="20B", help="count steps for this budget (default: the launch's length)"
    )
    parser.add_argument(
        "--device-memory",
        type=_gib,
        metavar="GiB",
        help="warn where a rank needs more (default: what the GPU of this machine has, if there is one)",
    )
    run = parser.add_argument_group("build and run")
    which = run.add_mutually_exclusive_group()
    which.add_argument(
        "--run-rank", type=int, metavar="R", help="build rank R's stage, take steps, compare with the plan"
    )
    which.add_argument(
        "--all-stages", action="store_true", help="the same with one rank of each pipeline stage in turn"
    )
    run.add_argument("--steps", type=_at_least(1), default=2, metavar="K", help="steps to take (default %(default)s)")
    run.add_argument(
        "--shrink",
        action="store_true",
        help="run with toy width, vocabulary and sequence length on mock data: same depth, layout and batches, a laptop's "
        "memory; the plan that is printed stays the launch's",
    )
    _add_time_flags(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="write the plan, and what was built, machine-readable")
    output.add_argument("--scale-table", action="store_true", help="print the table of docs/scale.md and end")
    return parser


def _built_line(plan: Plan, report: RankReport, seconds: float) -> str:
    held = "; ".join(f"{_span(chunk.layers)} ({chunk.parameters:,} parameters)" for chunk in report.chunks)
    return (
        f"stage {report.pipeline_rank}/{len(plan.stages) - 1}, rank {report.rank}: as planned: layers {held}; "
        f"{report.steps} steps, {report.peak_bytes / 2**30:.2f} GiB, {seconds:.1f} s"
    )


def _span(numbers: list[int]) -> str:
    from megatron_cod.rehearsal.report import span

    return span(numbers)


def _rehearse(args: argparse.Namespace, command_line: list[str], launch: Launch, plan: Plan) -> list[RankReport]:
    """Build and run the ranks asked for; ends the program with code 1 where one is not as planned."""
    from megatron_cod.estimate.ranks import place_of, stage_rank
    from megatron_cod.rehearsal.compare import Mismatch, compare
    from megatron_cod.rehearsal.launch import read_launch
    from megatron_cod.rehearsal.plan import make_plan
    from megatron_cod.rehearsal.process import RehearsalFailed, run_job
    from megatron_cod.rehearsal.shrink import shrink_flags
    from megatron_cod.rehearsal.worker import Job

    ranks = [args.run_rank]
    if args.all_stages:
        ranks = [stage_rank(stage.stage, launch.args, args.world_size) for stage in plan.stages]
    if args.shrink:
        launch = read_launch([*command_line, *shrink_flags(launch.args)], args.world_size)
        plan = make_plan(launch)
        shape = (launch.args.hidden_size, launch.args.padded_vocab_size, launch.args.seq_length)
        print("\nshrunk to hidden size {}, vocabulary {}, sequence length {}".format(*shape), flush=True)
    mock = args.shrink or launch.args.mock_data or any(note.startswith("no data given") for note in launch.notes)
    threads = 1 if args.shrink else os.cpu_count() or 1  # toy matrices only lose by more
    reports = []
    for rank in ranks:
        place = place_of(rank, launch.args, args.world_size)
        started = time.monotonic()
        try:
            vocabulary = launch.args.padded_vocab_size
            report = run_job(Job(launch.command_line, rank, args.world_size, args.steps, mock, vocabulary), threads)
            compare(plan, place, report, args.steps)
        except (Mismatch, RehearsalFailed) as error:
            text = str(error) if isinstance(error, Mismatch) else f"pipeline stage {place.pipeline}: {error}"
            print(f"error: {text}", file=sys.stderr)
            sys.exit(1)
        print(_built_line(plan, report, time.monotonic() - started), flush=True)
        reports.append(report)
    return reports


def main() -> None:
    """Plan; then build and run what is asked for."""
    args, command_line = build_parser().parse_known_args()
    if args.json and not Path(args.json).parent.is_dir():
        raise UserError(f"{args.json}: its folder does not exist")
    # torch warns of a missing CUDA runtime, which nothing here needs; Megatron tells how it reads a layout.
    for name in ("torch.utils.cpp_extension", "megatron"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    # After parsing, so that --help and wrong options answer at once.
    if args.scale_table:
        from megatron_cod.rehearsal.scale import scale_table

        print(scale_table())
        return
    if args.world_size is None:
        raise UserError("--world-size N is needed: how many processes the launch would start")
    from megatron_cod.estimate.ranks import place_of
    from megatron_cod.rehearsal.launch import read_launch
    from megatron_cod.rehearsal.plan import NotPlanned, make_plan
    from megatron_cod.rehearsal.report import device_warnings, format_plan, plan_as_json

    machine = named_machine(args)
    if args.suggest and machine is not None:
        print_suggestion(args, command_line, machine)
        return
    launch = read_launch(command_line, args.world_size)
    if args.run_rank is not None:
        place_of(args.run_rank, launch.args, args.world_size)  # refused before anything is printed
    try:
        plan = make_plan(launch, args.tokens)
    except NotPlanned as error:
        print(f"the launch would start; {error}", file=sys.stderr)
        sys.exit(_NOT_PLANNED)
    print(format_plan(plan), flush=True)
    device = _device_memory(args.device_memory) or (machine.memory_gib * 2**30 if machine else None)
    for warning in device_warnings(plan, launch.args, device) if device else ():
        print(warning, flush=True)
    content = plan_as_json(plan) | {"rehearsed": []}
    if machine is not None:
        content["time"] = predict(args, launch, machine)
    if args.run_rank is not None or args.all_stages:
        content["rehearsed"] = [asdict(report) for report in _rehearse(args, command_line, launch, plan)]
    if args.json:
        Path(args.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run_tool(main)
