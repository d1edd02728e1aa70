"""Turn text into Megatron's token files: JSON lines, plain text, Parquet, Arrow -> .bin, .idx, .json.

    megatron-cod preprocess --input 'corpus/*.jsonl.zst' --output-prefix data/corpus \\
        --tokenizer-type SentencePieceTokenizer --tokenizer-model tokenizer.model \\
        --append-eod --split 99,1 --workers 16

writes data/corpus_train_text_document.{bin,idx,json} and data/corpus_valid_text_document.{bin,idx,json}.
Without a split it writes data/corpus_text_document.*. The .json says what it was made of, and with which
arguments to train. An interrupted run is resumed when the same command is given again: until it is
complete, what is finished is in data/corpus.partial/.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_cod.cli.parsing import Parser
from megatron_cod.data.reading.skipped import skipped_lines
from megatron_cod.errors import run_tool

if TYPE_CHECKING:
    from megatron_cod.data.preprocessing.estimate import Estimate
    from megatron_cod.data.preprocessing.run import PreprocessResult

TYPES = [
    "SentencePieceTokenizer",
    "HuggingFaceTokenizer",
    "ByteLevelTokenizer",
    "GPTSentencePieceTokenizer",
    "Llama2Tokenizer",
]


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    data = parser.add_argument_group("input")
    data.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        help="files, globs, or folders written by save_to_disk of Hugging Face datasets, in this order; compressed or not",
    )
    data.add_argument(
        "--input-format",
        choices=["auto", "jsonl", "text"],
        default="auto",
        help="auto goes by the name: .jsonl .ndjson .json, .txt .text .md, .parquet, .arrow (default %(default)s)",
    )
    data.add_argument(
        "--json-keys",
        "--json-key",
        nargs="+",
        default=["text"],
        metavar="KEY",
        help="keys of JSON lines, or columns, to use, each into a dataset of its own (default text)",
    )
    data.add_argument(
        "--split-on",
        choices=["blank-line", "line", "file"],
        default="blank-line",
        help="separator of documents in plain text (default %(default)s)",
    )
    data.add_argument("--max-documents", type=int, metavar="N", help="take only the first N documents")
    data.add_argument(
        "--skip-bad-lines",
        action="store_true",
        help="skip and count unreadable documents instead of stopping with an error",
    )

    tokenizer = parser.add_argument_group("tokenizer")
    tokenizer.add_argument(
        "--tokenizer-type",
        required=True,
        choices=TYPES,
        help="ByteLevelTokenizer: id = byte value, end id 256",
    )
    tokenizer.add_argument(
        "--tokenizer-model",
        type=Path,
        help="a SentencePiece .model, or a Hugging Face folder (or its tokenizer.json); none for bytes",
    )
    tokenizer.add_argument(
        "--tokenizer-hf-no-include-special-tokens",
        action="store_true",
        help="keep a Hugging Face tokenizer from adding its own tokens, such as BOS, to each document",
    )
    tokenizer.add_argument(
        "--whole-texts",
        action="store_true",
        help="give the tokenizer whole texts, even where it is known that their words give the same tokens (slower)",
    )
    tokenizer.add_argument("--append-eod", action="store_true", help="end each document with the eod id")

    output = parser.add_argument_group("output")
    output.add_argument("--output-prefix", required=True, help="writes PREFIX[_SPLIT]_KEY_document.{bin,idx,json}")
    output.add_argument(
        "--split",
        metavar="90,5,5",
        help="deal documents out to train, valid, test by a hash of their text: in this proportion on average, each "
        "always to the same one",
    )
    output.add_argument(
        "--holdout-every",
        type=int,
        metavar="N",
        help="every N-th document of the input to valid, the others to train: exact, for few documents",
    )
    output.add_argument(
        "--allow-empty",
        action="store_true",
        help="a dataset without a document is no error as long as another one has some, as where a small input is split",
    )
    output.add_argument(
        "--shuffle-seed", type=int, metavar="SEED", help="put the documents in a random order that depends on SEED"
    )
    output.add_argument(
        "--deduplicate", action="store_true", help="of documents with the same text keep the first in the input"
    )
    output.add_argument(
        "--overwrite", action="store_true", help="replace existing output, and what is left of an unfinished other run"
    )
    output.add_argument("--workers", type=int, default=1, help="processes; the output is the same (default 1)")
    output.add_argument("--dry-run", action="store_true", help="tokenize the first documents, print an estimate")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    # After parsing, so that --help and wrong options answer at once.
    from megatron_cod.data.preprocessing.estimate import estimate
    from megatron_cod.data.preprocessing.job import PreprocessJob
    from megatron_cod.data.preprocessing.run import preprocess
    from megatron_cod.data.tokenizers.choice import TokenizerChoice

    special = not args.tokenizer_hf_no_include_special_tokens
    job = PreprocessJob(
        inputs=args.input,
        output_prefix=args.output_prefix,
        tokenizer=TokenizerChoice(args.tokenizer_type, args.tokenizer_model, hf_special_tokens=special),
        json_keys=args.json_keys,
        input_format=args.input_format,
        split_on=args.split_on,
        append_eod=args.append_eod,
        split=args.split,
        holdout_every=args.holdout_every,
        allow_empty=args.allow_empty,
        shuffle_seed=args.shuffle_seed,
        deduplicate=args.deduplicate,
        max_documents=args.max_documents,
        skip_bad_lines=args.skip_bad_lines,
        whole_texts=args.whole_texts,
        workers=args.workers,
        overwrite=args.overwrite,
    )
    if args.dry_run:
        print_estimate(estimate(job))
    else:
        print_summary(preprocess(job))


def print_estimate(result: Estimate) -> None:
    print(f"read             {result.documents:,} documents, {result.share:.1%} of the input")
    print(f"bytes per token  {result.text_bytes / result.tokens:.3f}")
    print(f"tokens in all    {result.total_tokens:,} (estimate), .bin of {result.total_bin_bytes / 1e6:,.1f} MB")
    print(f"time in all      {result.seconds / result.share:,.0f} s with one worker (estimate, start included)")
    print("nothing written")


def print_summary(result: PreprocessResult) -> None:
    header = f"{'documents':>12} {'tokens':>15} {'text bytes':>15} {'bytes/token':>11}  dtype   dataset"
    print(header)
    for prefix, record in result.datasets.items():
        ratio = record.text_bytes / max(record.tokens, 1)
        print(
            f"{record.documents:>12,} {record.tokens:>15,} {record.text_bytes:>15,} {ratio:>11.3f}  "
            f"{record.dtype:<7} {prefix}.bin .idx .json"
        )
    megabytes = sum(record.text_bytes for record in result.datasets.values()) / 1e6
    tokens = sum(record.tokens for record in result.datasets.values())
    first = next(iter(result.datasets.values()))
    others = f"{result.bad_count} bad lines and {result.duplicates} duplicates skipped"
    if len(result.empty) == 1:
        print(f"{first.empty} empty documents, {others}")
    else:
        print(f"empty documents: {', '.join(f'{n} under {key}' for key, n in result.empty.items())}; {others}")
    for line in skipped_lines(result.bad, result.bad_count):
        print(line)
    if not first.append_eod:
        print("note: documents have no end-of-document id (--append-eod was not given)")
    if result.seconds:
        rate = f"{megabytes / result.seconds:.1f} MB/s, {tokens / result.seconds:,.0f} tokens/s"
        print(f"{result.seconds:.1f} s, {rate}; train with:")
    else:
        print("nothing to do: these inputs and options have made these files already; train with:")
    print("  " + " ".join(first.training_arguments))


if __name__ == "__main__":
    run_tool(main)
