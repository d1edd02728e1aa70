"""Train a SentencePiece tokenizer on JSON lines or plain text, plain or compressed (gzip, zstd, xz, bzip2).

    megatron-cod tokenizer --input 'corpus/*.jsonl.zst' --output-prefix tokenizer --vocab-size 32000

Writes PREFIX.model and PREFIX.vocab. Train with
--tokenizer-type SentencePieceTokenizer --tokenizer-model PREFIX.model.
"""

from __future__ import annotations

import argparse
from dataclasses import fields

from megatron_cod.cli.parsing import Parser
from megatron_cod.data.reading.skipped import skipped_lines
from megatron_cod.errors import run_tool


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    data = parser.add_argument_group("input and output")
    data.add_argument("--input", dest="inputs", nargs="+", required=True, metavar="FILE", help="files or globs")
    data.add_argument("--output-prefix", required=True, help="writes PREFIX.model and PREFIX.vocab")
    data.add_argument("--json-key", default="text", help="key of the text in JSON lines (default %(default)s)")
    data.add_argument(
        "--input-format",
        choices=["auto", "jsonl", "text"],
        default="auto",
        help="auto goes by the name: .jsonl .ndjson .json, .txt .text .md (default %(default)s)",
    )
    data.add_argument(
        "--skip-bad-lines",
        action="store_true",
        help="skip and count unreadable documents instead of stopping with an error",
    )
    data.add_argument("--overwrite", action="store_true", help="replace existing output")

    model = parser.add_argument_group("model")
    model.add_argument("--vocab-size", type=int, default=32000, help="all pieces together (default %(default)s)")
    model.add_argument("--model-type", choices=["bpe", "unigram"], default="bpe", help="default %(default)s")
    model.add_argument(
        "--character-coverage",
        type=float,
        default=0.9995,
        help="share of characters that get a piece of their own (default %(default)s)",
    )
    switch = argparse.BooleanOptionalAction
    model.add_argument(
        "--byte-fallback",
        action=switch,
        default=True,
        help="write unknown characters as bytes, never as <unk>",
    )
    model.add_argument("--split-digits", action=switch, default=True, help="each digit is a piece")
    model.add_argument(
        "--normalization",
        choices=["identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"],
        default="identity",
        help="identity keeps text and spaces; the others collapse spaces too (default %(default)s)",
    )

    special = parser.add_argument_group("special pieces, with ids 0, 1, ... in this order; '' omits one")
    special.add_argument("--unk-piece", default="<unk>", help="default %(default)s")
    special.add_argument("--bos-piece", default="<s>", help="default %(default)s")
    special.add_argument("--eos-piece", default="</s>", help="Megatron's end of document (default %(default)s)")
    special.add_argument("--pad-piece", default="<pad>", help="default %(default)s")
    special.add_argument("--mask-piece", default="", help="none by default")
    special.add_argument("--user-defined", nargs="+", default=[], metavar="PIECE", help="pieces never cut")

    run = parser.add_argument_group("training")
    run.add_argument(
        "--max-sentences",
        type=int,
        default=2_000_000,
        help="train on a random sample of so many lines of about 1000 characters (default %(default)s)",
    )
    run.add_argument("--seed", type=int, default=1234, help="of that sample (default %(default)s)")
    run.add_argument("--threads", type=int, default=4, help="default %(default)s")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    # After parsing, so that --help and wrong options answer at once.
    from megatron_cod.data.tokenizers.sentencepiece_training import TokenizerTraining, train_tokenizer

    job = TokenizerTraining(**{field.name: getattr(args, field.name) for field in fields(TokenizerTraining)})
    result = train_tokenizer(job)
    print(f"vocabulary       {result.vocab_size} pieces")
    if result.bytes_per_token is None:
        print("bytes per token  unknown: too little text to keep some from training")
    else:
        print(f"bytes per token  {result.bytes_per_token:.2f} on {result.holdout_bytes} held-out bytes")
    if result.bad_count:
        print(f"skipped          {result.bad_count} bad lines")
        for line in skipped_lines(result.bad, result.bad_count):
            print(line)
    print(f"time             {result.seconds:.1f} s")
    print(f"files            {result.model}\n                 {result.vocab}")


if __name__ == "__main__":
    run_tool(main)
