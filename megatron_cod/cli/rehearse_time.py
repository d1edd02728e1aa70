"""``megatron-cod rehearse --time`` and ``--suggest``: what they print."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_cod.errors import UserError

if TYPE_CHECKING:
    from megatron_cod.planner.machine import Machine
    from megatron_cod.rehearsal.launch import Launch


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
