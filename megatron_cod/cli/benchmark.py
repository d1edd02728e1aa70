"""Time training steps: norm schemes against each other, or this project against transformers.

    megatron-cod benchmark schemes --hidden-size 512 --ffn-hidden-size 1376
    megatron-cod benchmark hf --rounds 20 --json hf.json
    megatron-cod benchmark table --output runs/benchmark

Contestants take turns in random order within every round, in one process; ratios are medians of per-round ratios with a
bootstrap 95% interval. docs/benchmarks.md explains the numbers.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from megatron_cod.cli.benchmark_table import ROWS, make_table
from megatron_cod.cli.parsing import Parser
from megatron_cod.errors import UserError, run_tool

_RECIPE = "debug"


def _common(parser: argparse.ArgumentParser, rounds: int, warmup: int) -> None:
    group = parser.add_argument_group("measurement")
    group.add_argument("--rounds", type=int, default=rounds, help="steps of every contestant (default %(default)s)")
    group.add_argument("--warmup", type=int, default=warmup, help="rounds thrown away first (default %(default)s)")
    group.add_argument("--threads", type=int, default=1, help="torch threads on the CPU (default %(default)s)")
    group.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu counts only this process's work: steadier on a busy machine, meaningless on a GPU (default wall)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="write everything, every step's time included")
    output.add_argument("--markdown", metavar="FILE", help="write the table for a document")


def build_parser() -> argparse.ArgumentParser:
    keep_lines = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{schemes,monitor,hf,table}")

    schemes = commands.add_parser(
        "schemes",
        help="step time of norm schemes, pre_ln being 1",
        description=(
            "Step time of norm schemes. Any Megatron flag may follow and wins over the recipe, e.g. --hidden-size 512.\n"
            "lns_activation is LayerNorm Scaling done naively, on activations: what scaling gamma avoids."
        ),
        formatter_class=keep_lines,
        allow_abbrev=False,
    )
    schemes.add_argument(
        "--schemes",
        nargs="+",
        default=["pre_ln", "lns", "lns_activation"],
        metavar="NAME",
        help="schemes, with options as in compare-schemes (lns+gamma-init), and lns_activation "
        "(default: pre_ln lns lns_activation)",
    )
    schemes.add_argument(
        "--recipe",
        nargs="+",
        default=[_RECIPE],
        metavar="FILE",
        help="several are measured one after the other, each in a process of its own (default: debug)",
    )
    schemes.add_argument(
        "--backends",
        nargs="+",
        default=[],
        choices=["transformer_engine", "apex", "torch"],
        help="all in one run, interleaved; what is not installed is listed and skipped (default: the automatic one)",
    )
    schemes.add_argument(
        "--peak-tflops",
        type=float,
        metavar="T",
        help="dense TFLOP/s of the device, for MFU (default: known GPUs, bf16)",
    )
    schemes.add_argument(
        "--profile",
        action="store_true",
        help="also count operators (CPU) or kernels (GPU) a layer, by size of operands",
    )
    schemes.add_argument("--nvtx", action="store_true", help="NVTX ranges around layers on a GPU, for Nsight Systems")
    _common(schemes, rounds=40, warmup=3)

    monitor = commands.add_parser(
        "monitor",
        help="what --on-nonfinite and --depth-monitor-interval cost",
        description="Step time alone, with the guard against NaN, with the depth monitor between its steps and on them.",
        formatter_class=keep_lines,
        allow_abbrev=False,
    )
    monitor.add_argument("--recipe", default=_RECIPE, metavar="FILE", help="default: debug")
    _common(monitor, rounds=20, warmup=2)

    hf = commands.add_parser(
        "hf",
        help="training step or evaluation against transformers' LlamaForCausalLM",
        description=(
            "Step time of pre_ln and lns against transformers' LlamaForCausalLM with the same weights, batches and\n"
            "AdamW (torch's fused one). Before timing, logits and the losses of the first steps must agree. transformers\n"
            "takes part twice, as a control. Any Megatron flag may follow and wins, those of the shape too."
        ),
        formatter_class=keep_lines,
        allow_abbrev=False,
    )
    shape = hf.add_argument_group("shape (default: the 130M Llama on 4 x 256 tokens)")
    for name, value in {"layers": 12, "hidden": 768, "heads": 12, "ffn": 2048, "vocab": 32000}.items():
        shape.add_argument(f"--{name}", type=int, default=value, help="default %(default)s")
    shape.add_argument("--seq", type=int, default=256, help="tokens in a sequence (default %(default)s)")
    shape.add_argument("--batch", type=int, default=4, help="sequences in a step (default %(default)s)")
    hf.add_argument("--evaluation", action="store_true", help="the loss of tokens in place of training steps")
    hf.add_argument("--profile", action="store_true", help="also print the time by operator (torch.profiler)")
    _common(hf, rounds=15, warmup=2)

    table = commands.add_parser(
        "table",
        help="the table of docs/benchmarks.md: training and evaluation at four shapes against transformers",
        description=(
            "Runs `benchmark hf` for each row of docs/benchmarks.md, each in a process of its own, and writes table.md,\n"
            "table.json and every row's own files into --output. A row that is there already is kept: repeat the command\n"
            "to resume. On one CPU core it takes about 40 minutes."
        ),
        formatter_class=keep_lines,
        allow_abbrev=False,
    )
    table.add_argument("--output", default="runs/benchmark", metavar="DIR", help="default: %(default)s")
    table.add_argument(
        "--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="NAME", help="some of " + ", ".join(ROWS)
    )
    table.add_argument("--dry-run", action="store_true", help="print the commands")
    table.add_argument("--rounds", type=int, help="of every row (default: each row's own, for about 5 minutes)")
    table.add_argument("--threads", type=int, default=1, help="torch threads on the CPU (default %(default)s)")
    table.add_argument("--clock", choices=["wall", "cpu"], default="cpu", help="default: %(default)s")
    return parser


def _one_by_one(args: argparse.Namespace) -> int:
    """The same command for each recipe alone, since Megatron starts once a process; returns the first exit code not 0.

    Files are named after the recipe: ``out.json`` becomes ``out.llama_130m.json``.
    """
    words = sys.argv[1:]
    start = words.index("--recipe")
    for recipe in args.recipe:
        command = [*words[: start + 1], recipe, *words[start + 1 + len(args.recipe) :]]
        for flag in ("--json", "--markdown"):
            if flag in command:
                place = command.index(flag) + 1
                command[place] = str(
                    Path(command[place]).with_suffix(f".{Path(recipe).stem}{Path(command[place]).suffix}")
                )
        print(f"--- {Path(recipe).stem}", flush=True)
        code = subprocess.run([sys.executable, "-m", "megatron_cod.cli.benchmark", *command]).returncode
        if code:
            return code
    return 0


def main() -> None:
    args, megatron_flags = build_parser().parse_known_args()
    if args.command == "table":
        if megatron_flags:
            raise UserError(f"benchmark table takes no other flags: {' '.join(megatron_flags)}")
        make_table(args.rows, Path(args.output), args.rounds, args.threads, args.clock, dry_run=args.dry_run)
        return
    for path in (args.json, args.markdown):
        if path and not Path(path).parent.is_dir():  # now, not after minutes of timing
            raise UserError(f"{path}: its folder does not exist")
    for name, least in {"rounds": 1, "warmup": 0, "threads": 1}.items():
        if getattr(args, name) < least:
            raise UserError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    # After parsing, so that --help and wrong options answer at once.
    from megatron_cod.benchmark.report import Report

    report: Report
    measurement = {name: getattr(args, name) for name in ("rounds", "warmup", "threads", "clock")}
    if args.command == "schemes":
        from megatron_cod.benchmark.schemes import compare_schemes

        if len(args.recipe) > 1:
            raise SystemExit(_one_by_one(args))
        report = compare_schemes(
            args.schemes,
            ["--recipe", args.recipe[0], *megatron_flags],
            backends=args.backends,
            peak=args.peak_tflops,
            profile=args.profile,
            nvtx=args.nvtx,
            **measurement,
        )
    elif args.command == "monitor":
        from megatron_cod.benchmark.monitor import time_monitor

        report = time_monitor(["--recipe", args.recipe, *megatron_flags], **measurement)
    else:
        from megatron_cod.benchmark.hf import compare_with_transformers
        from megatron_cod.benchmark.llama import LlamaShape

        sizes = {name: getattr(args, name) for name in LlamaShape.__dataclass_fields__}
        report = compare_with_transformers(
            LlamaShape(**sizes), megatron_flags, evaluation=args.evaluation, profile=args.profile, **measurement
        )
    print(report.text())
    report.write(args.json, args.markdown)


if __name__ == "__main__":
    run_tool(main)
