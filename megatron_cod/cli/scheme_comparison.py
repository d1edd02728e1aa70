"""What ``megatron-cod compare-schemes`` does once its command line is parsed: the runs, their table and figure."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import megatron_cod.training.before_megatron  # noqa: F401 (before Megatron: its warnings)
from megatron_cod.analysis.plots import plot_comparison
from megatron_cod.comparison.arms import Arm, parse_arms
from megatron_cod.comparison.report import as_csv, row_of, table
from megatron_cod.comparison.runs import DIVERGENCE_IS_A_RESULT, Outcome, train
from megatron_cod.data.sample_corpus import prepare_sample
from megatron_cod.errors import UserError
from megatron_cod.launch.local_run import RunFailed
from megatron_cod.rehearsal.launch import read_launch
from megatron_cod.schemes.table import SCHEMES, STOCK
from megatron_cod.training.flags.imports import import_schemes
from megatron_cod.training.flags.recipe_files import load_recipe

log = partial(print, flush=True)


def list_schemes() -> None:
    """Print the registered schemes."""
    for row in SCHEMES.values():
        log(f"{row.name:12} {row.block:48} {row.default_init:9} {row.reference}")


def all_arms() -> str:
    """Every registered scheme; Megatron's own with both initialisations, which are the two baselines."""
    return ",".join(f"{name}+normal,{name}+scaled" if name == STOCK else name for name in SCHEMES)


def run_flags(
    args: argparse.Namespace, arm: Arm, seed: int, data: Sequence[str], directory: Path, steps: int
) -> list[str]:
    """The command line of one run, after ``python -m megatron_cod.training.pretrain``."""
    return [
        *("--recipe", str(args.recipe), *(["--import", *args.import_modules] if args.import_modules else [])),
        *(*arm.flags, "--seed", str(seed)),
        *("--pipeline-model-parallel-size", str(args.pp), "--tensor-model-parallel-size", str(args.tp)),
        *("--train-iters", str(steps), "--eval-interval", str(max(1, steps // 3))),
        *data,
        *("--save", str(directory), "--save-interval", str(args.save_interval or max(1, steps // 4))),
        *("--keep-last-checkpoints", "1"),
        *DIVERGENCE_IS_A_RESULT,
        *args.flags,
    ]


def check(command_lines: Iterable[Sequence[str]], processes: int) -> None:
    """UserError for an arm that training would refuse, before the first one is trained.

    What a start sets in the environment is not passed on to the runs: each sets its own.
    """
    before = dict(os.environ)
    try:
        for flags in command_lines:
            read_launch(flags, processes)
    finally:
        os.environ.clear()
        os.environ.update(before)


def report(args: argparse.Namespace, outcomes: dict[str, dict[int, Outcome]], steps: int) -> str:
    """Write the table, the CSV and the figure; returns the table."""
    first = args.output / next(iter(outcomes)).replace("+", "_").replace("=", "-") / f"seed_{args.seeds[0]}"
    used = load_recipe(first / "resolved_args.yaml")  # with the flags given after --
    tokens = steps * int(used["global-batch-size"]) * int(used["seq-length"])
    title = f"{used['num-layers']} layers, hidden {used['hidden-size']}, {tokens:,} tokens a run, seeds {args.seeds}"
    text = table([row_of(name, seeds) for name, seeds in outcomes.items()])
    (args.output / "results.md").write_text(f"{title}\n\n{text}")
    (args.output / "results.csv").write_text(as_csv(outcomes))
    curves = {name: [one.metrics for one in seeds.values()] for name, seeds in outcomes.items()}
    plot_comparison(curves, args.output / "comparison.png", title)
    return f"{title}\n\n{text}"


def compare(args: argparse.Namespace) -> None:
    """Train what is asked for, and write the table. args: see ``compare_schemes.py``."""
    arms = parse_arms(all_arms() if args.schemes == "all" else args.schemes)
    import_schemes(["--recipe", str(args.recipe)])
    steps = args.steps or int(load_recipe(args.recipe)["train-iters"])
    processes = args.pp * args.tp * args.dp
    prefix = args.data or str(args.output / "data" / "sotu")
    runs = [(arm, seed, args.output / arm.folder / f"seed_{seed}") for seed in args.seeds for arm in arms]
    data = ["--train-data-path", f"{prefix}_train_text_document", "--valid-data-path", f"{prefix}_valid_text_document"]
    lines = {(arm.name, seed): run_flags(args, arm, seed, data, directory, steps) for arm, seed, directory in runs}
    checked = data if args.data else ["--mock-data"]  # the sample is not there yet
    check(
        [run_flags(args, arm, seed, checked, directory, steps) for arm, seed, directory in runs[: len(arms)]], processes
    )
    commands = [
        f"torchrun --nproc-per-node {processes} -m megatron_cod.training.pretrain {shlex.join(flags)}"
        for flags in lines.values()
    ]
    if args.dry_run:
        log("\n".join(commands))
        return
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "commands.sh").write_text("\n".join(commands) + "\n")
    if not args.data:
        prepare_sample(args.output / "data")
    outcomes: dict[str, dict[int, Outcome]] = {arm.name: {} for arm in arms}
    try:
        for index, (arm, seed, directory) in enumerate(runs, 1):
            name = f"{index}/{len(runs)} {arm.name} seed {seed}"
            outcomes[arm.name][seed] = train(
                name, processes, lines[arm.name, seed], directory, fresh=args.fresh, show=log
            )
    except RunFailed as error:
        raise UserError(f"{name}: {str(error).removeprefix('error: ')}") from None
    log(
        f"\n{report(args, outcomes, steps)}\nwritten: {args.output}/results.md, results.csv, comparison.png, commands.sh"
    )
