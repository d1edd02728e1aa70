"""Look into datasets, and at what training would be fed.

    megatron-cod inspect data/web_text_document data/books_text_document --samples 2
    megatron-cod inspect --step 120 --dp-rank 1 -- --recipe debug --train-data-path 0.7 data/web_...
    megatron-cod inspect --shares 1000 -- --recipe c4

The first form tells what a dataset was made of, how many documents and tokens it has, how long they are, and
shows some of them. The others take the command line of a launch after --, build the datasets and the order of
their samples as training does, and show the rows of a step on one data-parallel replica, or the share of each
source of a blend over the first steps, asked and actual.
"""

from __future__ import annotations

import argparse
import hashlib
from functools import partial
from typing import TYPE_CHECKING

from megatron_cod.cli.parsing import Parser
from megatron_cod.errors import run_tool

if TYPE_CHECKING:
    from megatron_cod.data.datasets.inspect import Decode
    from megatron_cod.training.start.loader_preview import Feed

log = partial(print, flush=True)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="PREFIX or FLAG", help="datasets, or after -- flags of a launch")
    data = parser.add_argument_group("datasets")
    data.add_argument("--samples", type=int, default=3, metavar="N", help="documents to show of each (default 3)")
    data.add_argument("--seed", type=int, default=0, help="by which they are chosen (default 0)")
    data.add_argument("--characters", type=int, default=300, metavar="N", help="of each to show (default 300)")
    feed = parser.add_argument_group("what training is fed (flags of the launch after --)")
    feed.add_argument("--step", type=int, metavar="N", help="show the rows of step N, counted from 1")
    feed.add_argument("--dp-rank", type=int, default=0, metavar="R", help="on data-parallel replica R (default 0)")
    feed.add_argument("--shares", type=int, metavar="N", help="show the share of each source over steps 1 to N")
    feed.add_argument("--world-size", type=int, help="processes of the launch (default: one data-parallel replica)")
    feed.add_argument("--ids", action="store_true", help="show ids instead of text")
    return parser


def parse_args() -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args()
    if args.step is None and args.shares is None:
        args.prefixes, args.flags = args.names, []
        if not args.names:
            parser.error("name a dataset, or --step or --shares with the flags of a launch after --")
    else:
        args.prefixes, args.flags = [], args.names
    return args


def show_dataset(prefix: str, args: argparse.Namespace) -> None:
    from megatron_cod.data.datasets.check import check_prefix
    from megatron_cod.data.datasets.inspect import decoder, length_histogram, length_summary, open_index, some_documents

    summary, index = check_prefix(prefix), open_index(prefix)
    record = summary.record
    log(f"{prefix}: {summary.documents:,} documents, {summary.tokens:,} tokens of {summary.dtype}")
    decode: Decode | None = None
    if record is None:
        log("  no .json beside it: made by another tool; its tokenizer is not known, so ids are shown")
    else:
        decode, why = decoder(record)
        log(f"  made with {record.tokenizer_type} {record.tokenizer_model or ''}, {record.vocab_size:,} ids")
        log(f"  from {len(record.inputs)} file(s), {record.text_bytes:,} bytes of text; skipped in the whole run: "
            f"{record.empty:,} empty, {record.bad:,} bad, {record.duplicates:,} duplicates")  # fmt: skip
        log(f"  options {', '.join(f'{name}={value}' for name, value in record.options.items())}")
        log(f"  train with {' '.join(record.training_arguments)}")
        if decode is None:
            log(f"  {why}; so ids are shown")
    log(f"  documents: {length_summary(index.lengths)}")
    for line in length_histogram(index.lengths):
        log(f"  {line}")
    for sample in some_documents(prefix, index, args.samples, args.seed, args.characters):
        text = " ".join(map(str, sample.ids)) if decode is None else decode(sample.ids)
        log(f"  document {sample.number:,} ({sample.length:,} tokens): {text[: args.characters]!r}")


def show_step(feed: Feed, args: argparse.Namespace) -> None:
    from megatron_cod.data.datasets.inspect import decoder
    from megatron_cod.data.datasets.manifest import read_record

    decoders: dict[str, Decode | None] = {}
    rows = list(feed.rows(args.step, args.dp_rank))
    log(f"step {args.step}, data-parallel replica {args.dp_rank} of {feed.replicas}: {len(rows)} rows")
    for row in rows:
        if row.source not in decoders:
            record = None if args.ids else read_record(row.source)
            decoders[row.source], why = (None, "") if record is None else decoder(record)
            if why:
                log(f"  {row.source}: {why}; so ids are shown")
        decode = decoders[row.source]
        digest = hashlib.sha256(row.tokens.astype("<i8").tobytes()).hexdigest()[:16]
        trained = int(row.loss_mask.sum())
        log(f"  micro-batch {row.micro_batch}, sample {row.sample:,} of {row.source}, sha256 {digest}, "
            f"{len(row.tokens)} tokens, {trained} in the loss")  # fmt: skip
        if decode is None:
            log(f"    {' '.join(map(str, row.tokens.tolist()))}")
        else:
            log(f"    {decode(row.tokens.tolist())[: args.characters]!r}")


def show_shares(feed: Feed, steps: int) -> None:
    shares = feed.shares(steps)
    log(f"{'asked':>8} {'actual':>8}  source (steps 1 to {steps})")
    for name, asked, actual in zip(feed.sources(), feed.asked_shares(), shares, strict=True):
        log(f"{asked:>8.3%} {actual:>8.3%}  {name}")


def main() -> None:
    args = parse_args()
    for prefix in args.prefixes:
        show_dataset(prefix, args)
    if args.flags or args.step is not None or args.shares is not None:
        from megatron_cod.training.start.loader_preview import Feed

        feed = Feed(args.flags, args.world_size)
        if args.step is not None:
            show_step(feed, args)
        if args.shares is not None:
            show_shares(feed, args.shares)


if __name__ == "__main__":
    run_tool(main)
