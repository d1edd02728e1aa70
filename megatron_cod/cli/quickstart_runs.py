"""What ``megatron-cod quickstart`` does once its command line is parsed: its runs, their table and figure."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import megatron_cod.training.before_megatron  # noqa: F401 (before Megatron: its warnings)
from megatron_cod.analysis.metrics import PARAMETERS, TRAIN_LOSS, VALID_LOSS, Metrics, perplexity
from megatron_cod.analysis.rate_figure import plot_rates
from megatron_cod.comparison.runs import train
from megatron_cod.data.sample_corpus import prepare_sample
from megatron_cod.errors import UserError
from megatron_cod.launch.local_run import RunFailed, on_cpus_instead
from megatron_cod.study.shapes import std_by_width
from megatron_cod.training.flags.recipe_files import load_recipe

log = partial(print, flush=True)
ARMS = {"lns": ("lns", "normal"), "pre_ln plain": ("pre_ln", "normal"), "pre_ln scaled": ("pre_ln", "scaled")}

RATES = (4e-3, 1.6e-2)
"""Of the recipe ``debug``: at the first Pre-LN is near its best, the second is four times as high
(docs/results/cpu_1m/results.md)."""

STEPS = 72
"""Of the recipe ``debug``."""


@dataclass(frozen=True)
class Run:
    """One arm at one peak learning rate."""

    arm: str
    rate: float
    is_first: bool
    """Whether it is the arm's first rate: its directory has the arm's name alone."""

    @property
    def name(self) -> str:
        return f"{self.arm}, lr {self.rate:g}"

    @property
    def folder(self) -> str:
        arm = self.arm.replace(" ", "_")
        return arm if self.is_first else f"{arm}_lr_{self.rate:g}"


def _plan(args: argparse.Namespace, recipe: dict[str, Any]) -> list[Run]:
    """All runs, the first rate of every arm before the second."""
    rates = args.rates
    if rates is None:
        own = float(recipe["lr"])
        rates = RATES if str(args.recipe) == "debug" else (own, 4 * own)
    return [Run(arm, rate, rate == rates[0]) for rate in rates for arm in ARMS]


def _init_std(args: argparse.Namespace, recipe: dict[str, Any]) -> list[str]:
    """That of studies for the width that is trained, with the recipe ``debug``, whose own is for wider models."""
    if str(args.recipe) != "debug":
        return []
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--hidden-size", type=int, default=int(recipe["hidden-size"]))
    width = parser.parse_known_args(args.flags)[0].hidden_size
    return ["--init-method-std", str(std_by_width(width))] if width > 0 else []  # training refuses other widths


def arm_flags(
    args: argparse.Namespace, run: Run, recipe: dict[str, Any], prefix: str, directory: Path, steps: int
) -> list[str]:
    """The command line of one run, after ``python -m megatron_cod.training.pretrain``."""
    scheme, policy = ARMS[run.arm]
    return [
        *("--recipe", str(args.recipe), "--norm-scheme", scheme, "--init-policy", policy),
        *("--lr", f"{run.rate:g}", "--min-lr", f"{run.rate / 10:g}", *_init_std(args, recipe)),
        *("--pipeline-model-parallel-size", str(args.pp), "--tensor-model-parallel-size", str(args.tp)),
        *("--train-iters", str(steps), "--eval-interval", str(steps // 3 + 1), "--seed", str(args.seed)),
        *("--train-data-path", f"{prefix}_train_text_document"),
        *("--valid-data-path", f"{prefix}_valid_text_document"),
        *("--save", str(directory), "--save-interval", str(steps)),
        *args.flags,
    ]


def table(runs: dict[Run, Metrics], tokens: int) -> str:
    """The comparison as a Markdown table."""
    header = (
        "scheme",
        "initialisation",
        "peak lr",
        "parameters",
        "tokens",
        "train loss",
        "valid loss",
        "valid perplexity",
        "variance after last layer",
    )
    rows = [header, tuple("-" * len(cell) for cell in header)]
    for run, metrics in sorted(runs.items(), key=lambda one: (list(ARMS).index(one[0].arm), one[0].rate)):
        last = metrics.series(TRAIN_LOSS)[1][-20:]
        valid = metrics.last(VALID_LOSS)
        variance = list(metrics.stream_variance().values())
        numbers = ("diverged", "-", "-", "-")
        if valid is not None and last and variance:
            numbers = (
                f"{sum(last) / len(last):.4f}",
                f"{valid:.4f}",
                f"{perplexity(valid):.2f}",
                f"{variance[-1]:.3g}",
            )
        rows.append(
            (*ARMS[run.arm], f"{run.rate:g}", f"{int(metrics.last(PARAMETERS) or 0):,}", f"{tokens:,}", *numbers)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows
    )


def quickstart(args: argparse.Namespace) -> None:
    """Train the arms, and report them. args: see ``quickstart.py``."""
    recipe = load_recipe(args.recipe)
    if any(flag.split("=")[0] in ("--lr", "--min-lr") for flag in args.flags):
        raise UserError("give --rates LR,LR in place of --lr and --min-lr: each arm runs at several rates")
    steps = args.steps or (STEPS if str(args.recipe) == "debug" else int(recipe["train-iters"]))
    prefix = args.data or str(args.output / "data" / "sotu")
    processes = args.pp * args.tp * args.dp
    plan = _plan(args, recipe)
    commands = {run: arm_flags(args, run, recipe, prefix, args.output / run.folder, steps) for run in plan}
    if args.dry_run:
        for flags in commands.values():
            print(f"torchrun --nproc-per-node {processes} -m megatron_cod.training.pretrain {' '.join(flags)}")
        return
    why = None if args.layout_given else on_cpus_instead(processes)
    if why:
        log(f"{why}. Training on {processes} CPU processes; in one process on the GPU: --pp 1")
    args.output.mkdir(parents=True, exist_ok=True)
    if not args.data:
        prepare_sample(args.output / "data")
    runs: dict[Run, Metrics] = {}
    try:
        for number, (run, flags) in enumerate(commands.items(), 1):
            log(f"run {number} of {len(commands)}")
            folder = args.output / run.folder
            runs[run] = train(run.name, processes, flags, folder, fresh=args.fresh, show=log, on_cpus=bool(why)).metrics
    except RunFailed as error:
        raise UserError(str(error).removeprefix("error: ")) from None
    used = load_recipe(args.output / "lns" / "resolved_args.yaml")  # with the flags given after --
    tokens = steps * int(used["global-batch-size"]) * int(used["seq-length"])
    text = table(runs, tokens)
    (args.output / "results.md").write_text(text + "\n")
    figure = args.output / "comparison.png"
    by_arm = {arm: {run.rate: metrics for run, metrics in runs.items() if run.arm == arm} for arm in ARMS}
    shape = f"{used['num-layers']} layers, hidden {used['hidden-size']}"
    plot_rates(by_arm, figure, f"{shape}, {tokens:,} tokens a run, one seed")
    print(f"\n{text}\n\nfigure: {figure}")
    print("Train loss is the mean of the last 20 steps; variance is measured on the validation text.")
    print("One seed at toy size. docs/studies.md: rates tuned for each arm, several seeds. Longer, or wider:")
    print("  megatron-cod quickstart --steps 2000 [--rates LR,LR] [--tp 2] [--dp 2] [--seed 1] [--output DIR]")
