"""Is LayerNorm Scaling better than what you run, on your data, at your size? Train the candidates and print the table.

    python tools/compare_schemes.py --recipe recipes/debug.yaml --schemes pre_ln+normal,pre_ln,lns --seeds 1,2
    python tools/compare_schemes.py --recipe recipes/llama_130m.yaml --data c4/en --schemes all --seeds 1,2,3 --dp 8
    python tools/compare_schemes.py --list

Every arm sees the same tokens in the same order at the same seed. Arms are trained one after another; a stopped
comparison goes on where it was when the command is repeated. An arm is a norm scheme, with flags after +:
lns+gamma-init, pre_ln+init-policy=normal (or pre_ln+normal), lns+lns-placement=attention, lns+residual-warmup-steps=50.
What is written: results.md, results.csv, comparison.png, commands.sh, and a directory for every run.
"""

import argparse
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import megatron_cod.training.before_megatron  # noqa: F401 (before Megatron: its warnings)
from megatron_cod.analysis.plots import plot_comparison
from megatron_cod.comparison.arms import Arm, parse_arms
from megatron_cod.comparison.report import as_csv, row_of, table
from megatron_cod.comparison.runs import DIVERGENCE_IS_A_RESULT, Outcome, train
from megatron_cod.data.sample_corpus import prepare_sample
from megatron_cod.errors import UserError, run_tool
from megatron_cod.launch.local_run import RunFailed
from megatron_cod.schemes.design import design_from_args
from megatron_cod.schemes.imports import add_import_flag
from megatron_cod.schemes.table import SCHEMES, STOCK
from megatron_cod.training.flags.imports import import_schemes
from megatron_cod.training.flags.parser import build_parser
from megatron_cod.training.flags.recipes import load_recipe, recipe_flags

log = partial(print, flush=True)


def all_arms() -> str:
    """Every registered scheme; Megatron's own with both initialisations, which are the two baselines."""
    return ",".join(f"{name}+normal,{name}+scaled" if name == STOCK else name for name in SCHEMES)


class _List(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        for row in SCHEMES.values():
            log(f"{row.name:12} {row.block:48} {row.default_init:9} {row.reference}")
        parser.exit()


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,2,3") from None
    if min(seeds) < 1 or len(set(seeds)) != len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r}: seeds are at least 1, and each is given once")
    return seeds


def parse_args(command_line: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    args = parser.parse_args(command_line)
    if min(args.pp, args.tp, args.dp, args.steps or 1, args.save_interval or 1) < 1:
        raise UserError("--pp, --tp, --dp, --steps and --save-interval must be at least 1")
    return args


def run_flags(args: argparse.Namespace, arm: Arm, seed: int, prefix: str, directory: Path, steps: int) -> list[str]:
    """The command line of one run, after ``python -m megatron_cod.training.pretrain``."""
    return [
        *("--recipe", str(args.recipe), *(["--import", *args.import_modules] if args.import_modules else [])),
        *(*arm.flags, "--seed", str(seed)),
        *("--pipeline-model-parallel-size", str(args.pp), "--tensor-model-parallel-size", str(args.tp)),
        *("--train-iters", str(steps), "--eval-interval", str(max(1, steps // 3))),
        *("--train-data-path", f"{prefix}_train_text_document", "--valid-data-path", f"{prefix}_valid_text_document"),
        *("--save", str(directory), "--save-interval", str(args.save_interval or max(1, steps // 4))),
        *("--keep-last-checkpoints", "1"),
        *DIVERGENCE_IS_A_RESULT,
        *args.flags,
    ]


def check(recipe: Path, command_lines: Sequence[Sequence[str]]) -> None:
    """UserError for an arm that training would refuse for its flags, before the first one is trained."""
    parser = build_parser()
    for flags in command_lines:
        given = parser.parse_args(flags)
        from_recipe = recipe_flags(load_recipe(recipe), parser, given.unset)
        design_from_args(parser.parse_args([*from_recipe, *flags]))


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


def main() -> None:
    args = parse_args()
    arms = parse_arms(all_arms() if args.schemes == "all" else args.schemes)
    import_schemes(["--recipe", str(args.recipe)])
    steps = args.steps or int(load_recipe(args.recipe)["train-iters"])
    processes = args.pp * args.tp * args.dp
    prefix = args.data or str(args.output / "data" / "sotu")
    runs = [(arm, seed, args.output / arm.folder / f"seed_{seed}") for seed in args.seeds for arm in arms]
    lines = {(arm.name, seed): run_flags(args, arm, seed, prefix, directory, steps) for arm, seed, directory in runs}
    check(args.recipe, [lines[arm.name, args.seeds[0]] for arm in arms])
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


if __name__ == "__main__":
    run_tool(main)
