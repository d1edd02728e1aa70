"""Megatron checkpoints to Hugging Face directories, and back; tokenizers of other libraries. No GPU is needed or used.

    megatron-cod convert export --checkpoint runs/first --output hf/first
    megatron-cod convert import --model hf/SmolLM2-135M --output runs/smollm2
    megatron-cod convert import --model hf/SmolLM2-135M --output runs/smollm2_lns --as-scheme lns
    megatron-cod convert import --model LNS_1B --output runs/lns_1b --unfolded-lns
    megatron-cod convert tokenizer --model hf/Devstral --output tokenizers/tekken

An LNS model is exported as a stock Llama (Mistral, Qwen2, Qwen3, Mixtral, DeepSeek): 1/sqrt(l) is multiplied into the
norms' gammas. docs/huggingface.md has the families, what is exact, and how to continue training.

What was written is loaded again and compared with what it was made from, on a few random tokens, before it gets its name:
--no-verify skips that, and so does too little memory (8 bytes a parameter, and 1 GB).

An interrupted conversion is taken up where it stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_cod.cli.parsing import Parser
from megatron_cod.errors import UserError, run_tool
from megatron_cod.schemes.imports import add_import_flag

if TYPE_CHECKING:
    from megatron_cod.huggingface.verification import MegatronLogits


def _add_export(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = commands.add_parser("export", help="Megatron checkpoint -> Hugging Face directory", allow_abbrev=False)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="what --save named, or an iter_N")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory to make")
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint of a run (default: the latest)")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="of the weights (default: the checkpoint's own)"
    )
    parser.add_argument("--family", metavar="NAME", help="which stock architecture (default: the simplest that fits)")
    parser.add_argument(
        "--like",
        type=Path,
        metavar="DIR",
        help="Hugging Face directory whose tokenizer, generation files and special token ids are taken over (default: "
        "those that came with an imported model)",
    )
    parser.add_argument("--vocab-size", type=int, metavar="N", help="keep so many rows of the padded vocabulary")
    parser.add_argument(
        "--no-fold", action="store_true", help="omit the depth factors: stock loaders then compute something else"
    )
    parser.add_argument("--license", metavar="ID", help="for the model card, such as apache-2.0")
    parser.add_argument("--base-model", metavar="NAME", help="for the model card: what training started from")
    parser.add_argument("--max-shard-gb", type=float, default=5.0, metavar="X", help="size of a file (%(default)s)")
    return parser


def _add_import(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = commands.add_parser("import", help="Hugging Face directory -> Megatron checkpoint", allow_abbrev=False)
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="directory with config.json and weights"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory to make; --load takes it")
    parser.add_argument(
        "--as-scheme",
        metavar="NAME",
        help="the scheme to train on with, such as lns; the function stays the same (default: pre_ln)",
    )
    parser.add_argument(
        "--unfolded-lns",
        action="store_true",
        help="the weights are of LNS and lack its factors, as the LNS authors' released 1B does",
    )
    parser.add_argument(
        "--padded-vocab-size", type=int, metavar="N", help="pad the vocabulary, to divide it over tensor parallelism"
    )
    parser.add_argument("--no-mtp", action="store_true", help="omit the layers of multi-token prediction (DeepSeek V3)")
    return parser


def _token_and_id(text: str) -> tuple[str, int]:
    token, _, number = text.rpartition("=")
    if not token or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not TOKEN=ID")
    return token, int(number)


def _add_tokenizer(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "tokenizer",
        help="tekken.json, a tiktoken file or vocab.json -> a folder with tokenizer.json",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", type=Path, required=True, metavar="PATH", help="such a file, or a folder that holds one"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="directory to make: --tokenizer-model"
    )
    parser.add_argument("--eos-token", metavar="TOKEN", help="ends a text (default: the usual one of the kind)")
    parser.add_argument(
        "--encoding", metavar="NAME", help="of a tiktoken file: cl100k_base, o200k_base, ... (default: by its name)"
    )
    parser.add_argument("--pattern", metavar="REGEX", help="of a tiktoken file of another encoding: splits texts")
    parser.add_argument(
        "--special",
        type=_token_and_id,
        nargs="+",
        metavar="TOKEN=ID",
        help="of a tiktoken file: its special tokens (default: those of the encoding)",
    )


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="export|import|tokenizer")
    _add_tokenizer(commands)
    for add in (_add_export, _add_import):
        command = add(commands)
        command.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
        command.add_argument(
            "--no-verify", action="store_true", help="do not load the result and compare it with what it was made from"
        )
        add_import_flag(command)
    return parser


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _megatron() -> MegatronLogits:
    from megatron_cod.training.start.loading import megatron_logits

    return megatron_logits


def _export(args: argparse.Namespace) -> None:
    from megatron_cod.huggingface.export import ExportJob, export_model

    if not args.max_shard_gb > 0:
        raise UserError(f"--max-shard-gb {args.max_shard_gb} must be more than 0")
    found = export_model(
        ExportJob(
            checkpoint=args.checkpoint,
            output=args.output,
            step=args.step,
            dtype=args.dtype,
            fold=not args.no_fold,
            family=args.family,
            vocab=args.vocab_size,
            like=args.like,
            license=args.license,
            base_model=args.base_model,
            shard_bytes=int(args.max_shard_gb * 1e9),
            dry_run=args.dry_run,
            verify=not args.no_verify,
        ),
        _log,
        _megatron(),
    )
    folded = ", factors folded into the weights" if found.folded and not found.scheme.is_stock else ""
    size = sum(parcel.bytes for parcel in found.parcels)
    would = "would be " if args.dry_run else ""
    print(f"{args.output}: {would}{found.arch.family}, {found.scheme.scheme}{folded}, {size / 1e9:.3f} GB")


def _import(args: argparse.Namespace) -> None:
    from megatron_cod.huggingface.importing import RECIPE, ImportJob, import_model

    job = ImportJob(
        args.model,
        args.output,
        args.as_scheme,
        args.unfolded_lns,
        args.padded_vocab_size,
        prediction=not args.no_mtp,
        dry_run=args.dry_run,
        verify=not args.no_verify,
    )
    found = import_model(job, _log, _megatron())
    would = "would be " if args.dry_run else ""
    print(f"{args.output}: {would}{found.arch.family} as {found.scheme.scheme}, {found.bytes / 1e9:.3f} GB")
    if args.dry_run:
        return
    print(f"train it further with: --recipe {args.output / RECIPE} --load {args.output} (docs/huggingface.md)")


def _tokenizer(args: argparse.Namespace) -> None:
    from megatron_cod.data.tokenizers.native_files import NativeOptions, convert

    special = None if args.special is None else dict(args.special)
    options = NativeOptions(args.encoding, args.pattern, special, args.eos_token)
    size = convert(args.model, args.output, options, _log)
    print(
        f"{args.output}: {size} tokens; use it with --tokenizer-type HuggingFaceTokenizer --tokenizer-model {args.output}"
    )


def main() -> None:
    args = build_parser().parse_args()
    if args.command == "tokenizer":
        _tokenizer(args)
        return
    # Both models are computed on the CPU, in fp32: a GPU's own precision of products would tell them apart.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # After parsing, so that --help answers at once; first, as Megatron reads what it prepares.
    from megatron_cod.training import before_megatron  # noqa: F401

    (_export if args.command == "export" else _import)(args)


if __name__ == "__main__":
    run_tool(main)
