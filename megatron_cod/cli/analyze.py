"""Look into the depth of a trained model: what each block does, and what is lost without it.

    megatron-cod analyze --model DIR --data text.jsonl --output report
    megatron-cod analyze --compare report_pre_ln report_lns --output both

DIR is a Hugging Face directory or a Megatron checkpoint of any layout. The report is one page, report.html, with its
figures beside it as PNG, CSV and JSON. docs/depth_diagnostics.md says what each figure means.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from megatron_cod.cli.parsing import Parser
from megatron_cod.errors import UserError, run_tool
from megatron_cod.schemes.imports import add_import_flag

METRICS = ("stream", "angle", "lens", "surgery", "jacobian", "usefulness")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", type=Path, metavar="DIR", help="Hugging Face directory, or a Megatron run or iter_N")
    parser.add_argument("--data", type=Path, metavar="FILE", help=".txt, .jsonl with 'text', or a .bin/.idx prefix")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="where the report goes; must not exist"
    )
    parser.add_argument("--compare", type=Path, nargs="+", metavar="DIR", help="overlay earlier reports instead")
    add_import_flag(parser)
    parser.add_argument("--name", help="what the model is called in figures (default: the folder's name)")
    parser.add_argument("--step", type=int, metavar="N", help="iteration of a Megatron run (default: the newest)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: the model's own")
    parser.add_argument("--blocks", metavar="NAME", help="the model's list of blocks, where it cannot be found")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="default float32")
    parser.add_argument("--device", default=None, help="default: cuda where there is one, else cpu")
    budget = parser.add_argument_group("budget")
    budget.add_argument("--tokens", type=int, default=4096, help="to measure on (default %(default)s)")
    budget.add_argument("--fit-tokens", type=int, default=8192, help="to fit linear maps on (default %(default)s)")
    budget.add_argument("--seq-length", type=int, default=256, help="default %(default)s")
    budget.add_argument("--batch", type=int, default=4, help="sequences at a time (default %(default)s)")
    budget.add_argument("--jacobian-draws", type=int, default=2, help="a block and batch (default %(default)s)")
    budget.add_argument(
        "--max-memory",
        type=float,
        default=4.0,
        metavar="GB",
        help="for the linear maps, beside the model and its activations: blocks are fitted in as many groups as that "
        "takes, each with a pass of its own (default %(default)s)",
    )
    budget.add_argument("--seed", type=int, default=0, help="of those draws (default 0)")
    budget.add_argument(
        "--metrics", nargs="+", choices=METRICS, default=list(METRICS), help="default: all; the first are the cheapest"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="load model and text, print what would be done, do nothing"
    )
    return parser


def _check(args: argparse.Namespace) -> None:
    if bool(args.compare) == bool(args.model):
        raise UserError("give either --model with --data, or --compare")
    if args.model and not args.data:
        raise UserError("--model needs --data: text to measure on")
    for name in ("tokens", "fit_tokens", "batch", "jacobian_draws"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    if not args.max_memory > 0:
        raise UserError(f"--max-memory {args.max_memory:g} must be above 0")
    if args.output.exists():
        raise UserError(f"--output {args.output} exists already")


def _opened(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model, its blocks ready to be run alone, and its tokenizer: None where the data are token ids."""
    # First, as Megatron reads what it prepares.
    from megatron_cod.training import before_megatron  # noqa: F401, I001
    from megatron_cod.analysis.depth.models import traced_transformers
    from megatron_cod.analysis.depth.text import holds_ids
    from megatron_cod.huggingface.generation import checkpoint_tokenizer, foldable, open_model

    has_text = bool(args.tokenizer) or not holds_ids(args.data)
    if args.model.is_dir() and not (args.model / "config.json").is_file() and not foldable(args.model, args.step):
        from megatron_cod.training.start.loading import trace_megatron

        model = trace_megatron(args.model, args.step, args.seq_length)
        if not has_text:
            return model, None
        return model, checkpoint_tokenizer(args.model, args.step, args.tokenizer, model.vocab_size or 0)
    found, tokenizer = open_model(args.model, args.step, args.tokenizer, args.dtype, with_tokenizer=has_text)
    return traced_transformers(found, args.blocks), tokenizer


def _measured(args: argparse.Namespace) -> dict[str, Any] | None:
    # After parsing, so that --help and wrong options answer at once.
    from megatron_cod.training import before_megatron  # noqa: F401, I001
    from megatron_cod.analysis.depth.measure import Budget, measure
    from megatron_cod.analysis.depth.progress import Progress
    from megatron_cod.analysis.depth.text import split_text
    from megatron_cod.launch.devices import device_named

    device = device_named(args.device)
    model, tokenizer = _opened(args)
    fit = args.fit_tokens if "usefulness" in args.metrics else 0
    sizes = {"length": args.seq_length, "batch": args.batch, "evaluation": args.tokens, "fit": fit}
    judging, fitting = split_text(args.data, tokenizer, vocab=model.vocab_size, **sizes)
    facts = {
        "model": args.name or args.model.resolve().name,
        "text": args.data.name,
        "sequences": sum(len(batch) for batch in judging),
        "of tokens": args.seq_length,
        "dtype": args.dtype,
    }
    model.to(device)
    budget = Budget(
        evaluation=[batch.to(device) for batch in judging],
        fit=[batch.to(device) for batch in fitting],
        jacobian_draws=args.jacobian_draws,
        seed=args.seed,
        max_bytes=args.max_memory * 1e9,
    )
    if fit:
        budget.groups(model)  # whether tokens and memory are enough, before minutes of other metrics
    if args.dry_run:
        print(f"{model.depth} blocks; " + ", ".join(f"{name} {value}" for name, value in facts.items()))
        return None
    with Progress(budget, model, args.metrics) as progress:
        return {"facts": facts, **measure(model, budget, args.metrics, progress.step)}


def main() -> None:
    args = build_parser().parse_args()
    _check(args)
    from megatron_cod.analysis.depth.report import read_result, write_report
    from megatron_cod.analysis.depth.summary import sentences

    results: dict[str, Any]
    if args.compare:
        results = {folder.name: read_result(folder) for folder in args.compare}
        if len(results) != len(args.compare):
            raise UserError("--compare: two folders have the same name")
    else:
        found = _measured(args)
        if found is None:
            return
        results = {args.name or args.model.resolve().name: found}
    page = write_report(results, args.output)
    for name, found in results.items():
        print(f"{name}:")
        for line in sentences(found):
            print(f"  {line}")
    print(f"wrote {page}")


if __name__ == "__main__":
    run_tool(main)
