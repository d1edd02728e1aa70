"""``megatron-cod rehearse --time`` and ``--suggest``: their flags, and what they print."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_cod.common.numbers import number_or_nan
from megatron_cod.errors import UserError

if TYPE_CHECKING:
    from megatron_cod.planner.machine import Machine
    from megatron_cod.rehearsal.launch import Launch


def _above_zero(text: str) -> float:
    value = number_or_nan(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def add_time_flags(parser: argparse.ArgumentParser) -> None:
    """The group of flags."""
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


def named_machine(args: argparse.Namespace) -> Machine | None:
    """The machine of --time or --suggest."""
    asked = "--time" if args.time else "--suggest" if args.suggest else None
    if asked is None:
        if args.machine is not None:
            raise UserError("--machine is for --time and --suggest: give one of them")
        if args.gpu_mtbf is not None:
            raise UserError("--gpu-mtbf is for --time: give it, and --machine")
        return None
    from megatron_cod.planner.machine import BUILT_IN, find_machine
    from megatron_cod.planner.step import refuse_unfit

    if args.machine is None:
        raise UserError(f"{asked} needs --machine: {', '.join(BUILT_IN)}, or a YAML file")
    machine = find_machine(args.machine)
    refuse_unfit(args.world_size, machine)
    return machine


def predict(args: argparse.Namespace, launch: Launch, machine: Machine) -> dict[str, Any]:
    """The whole of --time, printed; the same as plain values."""
    from megatron_cod.planner.goodput import Failures, daly_interval, goodput, goodput_lines
    from megatron_cod.planner.report import format_time, time_as_json
    from megatron_cod.planner.step import step_time

    step = step_time(launch.args, machine)
    print(format_time(step), flush=True)
    content = time_as_json(step)
    if args.gpu_mtbf is not None:
        failures = Failures(args.gpu_mtbf * 3600 / args.world_size, args.save_seconds, args.restart_seconds)
        print("\n".join(goodput_lines(failures, step.seconds)), flush=True)
        interval = daly_interval(failures)
        content["checkpoint_interval_seconds"], content["goodput"] = interval, goodput(failures, interval)
    return content


def print_suggestion(args: argparse.Namespace, command_line: list[str], machine: Machine) -> None:
    """The whole of --suggest."""
    from megatron_cod.planner.suggest import suggest
    from megatron_cod.planner.suggest_report import format_suggestion, suggestion_as_json

    if args.run_rank is not None or args.all_stages:
        raise UserError("--suggest builds no rank: leave --run-rank and --all-stages to a call of their own")
    found = suggest(command_line, args.world_size, machine, args.device_memory)
    print(format_suggestion(found, machine))
    if args.json:
        Path(args.json).write_text(json.dumps(suggestion_as_json(found), indent=1) + "\n")
