"""Train a 24-layer model three times over a pipeline of processes, and see what LayerNorm Scaling does to its stream.

    make quickstart                                  # or: python examples/quickstart.py
    python examples/quickstart.py --steps 2000       # longer
    python examples/quickstart.py --pp 2 --tp 2      # four processes; --dp 2 doubles them again
    python examples/quickstart.py --recipe recipes/llama_60m.yaml --dp 8 --data PREFIX   # on GPUs, the same command

The arms see the same tokens in the same order: LayerNorm Scaling; Pre-LN with plain initialisation (the paper's
baseline); Pre-LN as Megatron ships it, with scaled initialisation. At this size the initialisation and the seed decide
which loss is lowest, so nothing is claimed about losses: they are printed as measured. A finished arm is kept when the
command is repeated; --fresh trains it again.
"""

import argparse
from functools import partial
from pathlib import Path

import megatron_cod.training.before_megatron  # noqa: F401 (before Megatron: its warnings)
from megatron_cod.analysis.metrics import PARAMETERS, TRAIN_LOSS, VALID_LOSS, Metrics, perplexity
from megatron_cod.analysis.plots import plot_comparison
from megatron_cod.comparison.runs import train
from megatron_cod.data.sample_corpus import prepare_sample
from megatron_cod.errors import UserError, run_tool
from megatron_cod.launch.local_run import RunFailed, on_cpus_instead
from megatron_cod.training.flags.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]
log = partial(print, flush=True)
ARMS = {"lns": ("lns", "normal"), "pre_ln plain": ("pre_ln", "normal"), "pre_ln scaled": ("pre_ln", "scaled")}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "debug.yaml")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="directory (%(default)s)")
    parser.add_argument(
        "--data", metavar="PREFIX", help="PREFIX_{train,valid}_text_document (default: the sample corpus)"
    )
    parser.add_argument("--steps", type=int, help="training steps of each arm (default: the recipe's)")
    parser.add_argument("--pp", type=int, help="pipeline stages (2)")
    parser.add_argument("--tp", type=int, help="tensor-parallel ranks (1)")
    parser.add_argument("--dp", type=int, help="data-parallel replicas (1)")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--fresh", action="store_true", help="train arms again that are already finished")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run")
    parser.add_argument("flags", nargs="*", help="Megatron flags for every arm, after --")
    args = parser.parse_args()
    args.layout_given = any(one is not None for one in (args.pp, args.tp, args.dp))
    args.pp, args.tp, args.dp = (
        default if one is None else one for one, default in ((args.pp, 2), (args.tp, 1), (args.dp, 1))
    )
    if min(args.pp, args.tp, args.dp, 1 if args.steps is None else args.steps) < 1:
        raise UserError("--pp, --tp, --dp and --steps must be at least 1")
    return args


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


def main() -> None:
    args = parse_args()
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
    print("  python examples/quickstart.py --steps 2000 [--tp 2] [--dp 2] [--seed 1] [--output DIR]")


if __name__ == "__main__":
    run_tool(main)
