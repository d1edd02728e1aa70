"""What ``megatron-cod quickstart`` does once its command line is parsed: three runs, their table and figure."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import megatron_cod.training.before_megatron  # noqa: F401 (before Megatron: its warnings)
from megatron_cod.analysis.metrics import PARAMETERS, TRAIN_LOSS, VALID_LOSS, Metrics, perplexity
from megatron_cod.analysis.plots import plot_comparison
from megatron_cod.comparison.runs import train
from megatron_cod.data.sample_corpus import prepare_sample
from megatron_cod.errors import UserError
from megatron_cod.launch.local_run import RunFailed, on_cpus_instead
from megatron_cod.training.flags.recipe_files import load_recipe

log = partial(print, flush=True)
ARMS = {"lns": ("lns", "normal"), "pre_ln plain": ("pre_ln", "normal"), "pre_ln scaled": ("pre_ln", "scaled")}


def arm_flags(args: argparse.Namespace, arm: str, prefix: str, directory: Path, steps: int) -> list[str]:
    """The command line of one arm, after ``python -m megatron_cod.training.pretrain``."""
    scheme, policy = ARMS[arm]
    return [
        *("--recipe", str(args.recipe), "--norm-scheme", scheme, "--init-policy", policy),
        *("--pipeline-model-parallel-size", str(args.pp), "--tensor-model-parallel-size", str(args.tp)),
        *("--train-iters", str(steps), "--eval-interval", str(steps // 3 + 1), "--seed", str(args.seed)),
        *("--train-data-path", f"{prefix}_train_text_document"),
        *("--valid-data-path", f"{prefix}_valid_text_document"),
        *("--save", str(directory), "--save-interval", str(steps)),
        *args.flags,
    ]


def table(runs: dict[str, Metrics], tokens: int) -> str:
    """The comparison as a Markdown table."""
    header = (
        "scheme",
        "initialisation",
        "parameters",
        "tokens",
        "train loss",
        "valid loss",
        "valid perplexity",
        "variance after last layer",
    )
    rows = [header, tuple("-" * len(cell) for cell in header)]
    for name, metrics in runs.items():
        last = metrics.series(TRAIN_LOSS)[1][-20:]
        valid = metrics.last(VALID_LOSS)
        assert valid is not None
        variance = list(metrics.stream_variance().values())[-1]
        numbers = (f"{sum(last) / len(last):.4f}", f"{valid:.4f}", f"{perplexity(valid):.2f}", f"{variance:.3g}")
        rows.append((*ARMS[name], f"{int(metrics.last(PARAMETERS) or 0):,}", f"{tokens:,}", *numbers))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows
    )


def quickstart(args: argparse.Namespace) -> None:
    """Train the arms, and report them. args: see ``quickstart.py``."""
    recipe = load_recipe(args.recipe)
    steps = args.steps or int(recipe["train-iters"])
    prefix = args.data or str(args.output / "data" / "sotu")
    processes = args.pp * args.tp * args.dp
    if args.dry_run:
        for name in ARMS:
            flags = arm_flags(args, name, prefix, args.output / name.replace(" ", "_"), steps)
            print(f"torchrun --nproc-per-node {processes} -m megatron_cod.training.pretrain {' '.join(flags)}")
        return
    why = None if args.layout_given else on_cpus_instead(processes)
    if why:
        log(f"{why}. Training on {processes} CPU processes; in one process on the GPU: --pp 1")
    args.output.mkdir(parents=True, exist_ok=True)
    prefix = args.data or prepare_sample(args.output / "data")
    runs = {}
    try:
        for name in ARMS:
            directory = args.output / name.replace(" ", "_")
            flags = arm_flags(args, name, prefix, directory, steps)
            runs[name] = train(name, processes, flags, directory, fresh=args.fresh, show=log, on_cpus=bool(why)).metrics
    except RunFailed as error:
        raise UserError(str(error).removeprefix("error: ")) from None
    used = load_recipe(args.output / "lns" / "resolved_args.yaml")  # with the flags given after --
    tokens = steps * int(used["global-batch-size"]) * int(used["seq-length"])
    text = table(runs, tokens)
    (args.output / "results.md").write_text(text + "\n")
    figure = args.output / "comparison.png"
    plot_comparison(
        {name: [metrics] for name, metrics in runs.items()},
        figure,
        f"{used['num-layers']} layers, hidden {used['hidden-size']}, {tokens:,} tokens an arm",
    )
    print(f"\n{text}\n\nfigure: {figure}")
    print("Train loss is the mean of the last 20 steps; variance is measured on the validation text.")
    print("One seed at toy size: the initialisation and the seed decide the order of the losses. Longer, or wider:")
    print("  megatron-cod quickstart --steps 2000 [--tp 2] [--dp 2] [--seed 1] [--output DIR]")
