"""Fine-tune the quick start's model on questions about the sample corpus, export it, and ask it. Two minutes on a CPU.

    make quickstart && python examples/fine_tuning.py
    python examples/fine_tuning.py --base runs/first --epochs 6 -- --tensor-model-parallel-size 2

434 questions "Continue this speech of PRESIDENT, YEAR: ..." whose answers are the next sentences, from the speeches that
the model was pretrained on; 40 from the two that it never saw, to validate on. Printed is the loss per token of those
answers before and after, as measured: a model of this size answers with words, hardly with sense.
"""

import argparse
import json
import os
from functools import partial
from pathlib import Path

import megatron_cod.training.before_megatron  # noqa: F401 (before Megatron: its warnings)
from megatron_cod.analysis.metrics import VALID_LOSS, perplexity, read_metrics
from megatron_cod.checkpoint.selection import RESOLVED
from megatron_cod.data.sample_corpus import write_sample_conversations
from megatron_cod.errors import UserError, run_tool
from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.generation import answer, open_directory
from megatron_cod.launch.devices import device_named
from megatron_cod.launch.local_run import RunFailed, on_cpus_instead, run_training
from megatron_cod.training.flags.recipe_files import load_recipe

ROOT = Path(__file__).resolve().parents[1]
log = partial(print, flush=True)
MODEL = ("num-layers", "hidden-size", "ffn-hidden-size", "num-attention-heads", "norm-scheme")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("runs/quickstart/lns"), help="a pretrained run (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/fine_tuning"), help="directory (%(default)s)")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "sft_debug.yaml")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the questions (%(default)s)")
    parser.add_argument("--processes", type=int, help="processes; data-parallel by default (2)")
    parser.add_argument("flags", nargs="*", help="Megatron flags, after --")
    args = parser.parse_args()
    args.why_on_cpus = on_cpus_instead(2) if args.processes is None else None
    args.processes = args.processes or 2
    if not (args.base / RESOLVED).is_file():
        raise UserError(f"{args.base} is no pretrained run; make quickstart trains one")
    if (args.output / "run").exists():
        raise UserError(f"{args.output} exists already; give another --output, or delete it")
    return args


def common_flags(args: argparse.Namespace) -> list[str]:
    """The model as the base has it, and the data."""
    base = load_recipe(args.base / RESOLVED)
    train, valid = write_sample_conversations(args.output / "data")
    return [
        *("--recipe", str(args.recipe), *(f"--{key}={base[key]}" for key in MODEL), "--load", str(args.base)),
        *("--sft-data-path", str(train), "--sft-valid-data-path", str(valid), *args.flags),
    ]


def loss_of_the_base(args: argparse.Namespace, flags: list[str]) -> float:
    """On the answers held out, before anything is trained: a step at learning rate 0."""
    file = args.output / "base.jsonl"
    file.unlink(missing_ok=True)
    still = ["--unset", "train-epochs", "--train-iters", "1", "--lr", "0", "--min-lr", "0", "--metrics-file", str(file)]
    run_training(
        args.processes, [*flags, *still], args.output / "base.log", lambda _: None, "sft", bool(args.why_on_cpus)
    )
    return read_metrics(file).series(VALID_LOSS)[1][-1]


def main() -> None:
    args = parse_args()
    if args.why_on_cpus:
        log(f"{args.why_on_cpus}. Training on {args.processes} CPU processes; on the GPU: --processes 1")
    flags, run = common_flags(args), args.output / "run"
    try:
        before = loss_of_the_base(args, flags)
        more = ["--train-epochs", str(args.epochs), "--save", str(run), "--save-interval", "100000"]
        run_training(args.processes, [*flags, *more], args.output / "sft.log", log, "sft", bool(args.why_on_cpus))
    except RunFailed as error:
        raise UserError(str(error).removeprefix("error: ")) from None
    after = read_metrics(run / "metrics.jsonl").series(VALID_LOSS)[1][-1]
    log("\nloss per token of the 40 answers held out:")
    for when, loss in {"before": before, "after": after}.items():
        log(f"  {when:6} {loss:.4f}, perplexity {perplexity(loss):.2f}")
    export_model(ExportJob(run, args.output / "hf"), log)
    model, tokenizer = open_directory(args.output / "hf")
    model.to(device_named(None))
    lines = (args.output / "data" / "sotu_valid.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines[::20]:
        question = json.loads(line)["prompt"]
        log(f"\n{question}\n  -> {answer(model, tokenizer, question, 80)}")
    log(f"\nask it more: python tools/generate.py --model {args.output / 'hf'} --chat 'Continue this speech of ...'")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run_tool(main)
