"""Remove blocks of a model, or merge neighbours, into a Hugging Face directory that loads anywhere.

    megatron-cod prune --model DIR --remove 25 26 27 --output shorter
    megatron-cod prune --model CHECKPOINT --merge 20 23 --output shorter

DIR is a Hugging Face directory or a Megatron checkpoint. Blocks count from 1, as in megatron-cod analyze. Of an LNS
checkpoint each block keeps the factor of its old place: it is folded into the weights, and the result is a plain model.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from megatron_cod.cli.parsing import Parser
from megatron_cod.errors import run_tool
from megatron_cod.schemes.imports import add_import_flag


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="must not exist")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--remove", type=int, nargs="+", metavar="N", help="blocks to remove")
    what.add_argument("--merge", type=int, nargs=2, metavar=("FIRST", "LAST"), help="average these into one block")
    add_import_flag(parser)
    parser.add_argument("--step", type=int, metavar="N", help="iteration of a Megatron run (default: the newest)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: the model's own")
    parser.add_argument("--blocks", metavar="NAME", help="the model's list of blocks, where it cannot be found")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="written (default float32)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    return parser


def _verified(folder: Path, model: Any, dtype: str) -> str:
    """Load what was written, whole, and compare it with the model in memory; the line that says so."""
    from megatron_cod.huggingface.export import DTYPES
    from megatron_cod.huggingface.verification import compare, loaded_whole, logits_of, probe_tokens

    sizes = model.config.get_text_config()
    tokens = probe_tokens(sizes.vocab_size, getattr(sizes, "max_position_embeddings", 64))
    expected = logits_of(model.eval(), tokens)
    return "verified: " + compare(expected, logits_of(loaded_whole(folder, DTYPES[dtype]), tokens), "read back")


def main() -> None:
    args = build_parser().parse_args()
    # After parsing, so that --help and wrong options answer at once; first, as Megatron reads what it prepares.
    from megatron_cod.training import before_megatron  # noqa: F401, I001
    from megatron_cod.analysis.depth.models import find_blocks
    from megatron_cod.analysis.depth.prune import Plan, prune
    from megatron_cod.huggingface.generation import open_model
    from megatron_cod.huggingface.atomic_directory import PartialDirectory
    from megatron_cod.huggingface.verification import NotTheSame

    model, tokenizer = open_model(args.model, args.step, args.tokenizer, args.dtype)
    depth = len(find_blocks(model, args.blocks))
    plan = Plan.removing(depth, set(args.remove)) if args.remove else Plan.merging(depth, *args.merge)
    line = f"{depth} blocks become {len(plan.groups)}: " + " ".join("+".join(map(str, group)) for group in plan.groups)
    if args.dry_run:
        print(line)
        return
    part = PartialDirectory(args.output, {"job": [str(value) for value in vars(args).values()]})
    part.check_space(sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()))
    prune(model, plan, args.blocks)
    # What the weights were trained as holds for the old places only.
    if hasattr(model.config, "megatron_cod"):
        del model.config.megatron_cod
    try:
        model.save_pretrained(part.folder)
    except Exception as error:  # whatever transformers raises: it checks the configuration first
        part.discard()
        raise NotTheSame(f"the shorter model does not load in transformers: {str(error)[:300]}") from error
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(part.folder)
    try:
        verified = _verified(part.folder, model, args.dtype)
    except NotTheSame:
        part.discard()
        raise
    part.finish()
    print(f"{line}\n{verified}\nwrote {args.output}")


if __name__ == "__main__":
    run_tool(main)
