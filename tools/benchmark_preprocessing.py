"""Measure tools/preprocess_data.py against a simple loop, and against transformers + datasets, on text of your own.

    python tools/benchmark_preprocessing.py --input 'corpus/*.jsonl' --workers 1 2 \\
        --tokenizer-type SentencePieceTokenizer --tokenizer-model tokenizer.model

simple     one document at a time, as Megatron-LM's tool does it: json.loads, tokenize, add_document; with several
           workers a pool of processes tokenizes and this one writes
this       preprocess() of this project; its files must be those of the simple loop, to the byte
datasets   load_dataset and a batched map (needs the package datasets); writes no token files

Each way runs in a process of its own, in turn, over the same lines; start-up is not counted. MB are those of the text.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_cod.errors import UserError, run_tool

_WAYS = ("simple", "this", "datasets")
_KEY = "text"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, metavar="FILE", help="JSON lines with the key text")
    parser.add_argument("--tokenizer-type", required=True, help="as for tools/preprocess_data.py")
    parser.add_argument("--tokenizer-model", type=Path, help="as for tools/preprocess_data.py")
    parser.add_argument("--ways", nargs="+", choices=_WAYS, default=["simple", "this"], help="default: simple this")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2], help="default: 1 2")
    parser.add_argument("--rounds", type=int, default=3, help="times each way runs, in turn (default %(default)s)")
    parser.add_argument("--megabytes", type=float, default=20.0, help="how much of the input (default %(default)s)")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # how this program calls itself
    return parser.parse_args()


def write_sample(patterns: list[str], size: float, path: Path) -> tuple[int, int]:
    """Lines from all inputs in equal strides, `size` bytes of text; documents and bytes of text."""
    from megatron_cod.data.reading.inputs import find_inputs

    inputs = find_inputs(patterns)
    stride = max(1, round(sum(source.size for source in inputs) / size))
    documents = text_bytes = 0
    with path.open("w", encoding="utf-8") as file:
        for source in inputs:
            with source.path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines):
                    if number % stride == 0 and (text := json.loads(line)[_KEY]).strip():
                        file.write(json.dumps({_KEY: text}) + "\n")
                        documents, text_bytes = documents + 1, text_bytes + len(text.encode("utf-8"))
    return documents, text_bytes


@contextmanager
def measured() -> Iterator[Callable[[], dict[str, float]]]:
    """Seconds by the clock, and of processors in this process and those it has waited for."""

    def processors() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)

    clock, before = time.perf_counter(), processors()
    yield lambda: {"seconds": time.perf_counter() - clock, "processor_seconds": processors() - before}


class Simple:
    """What the processes of the simple loop do."""

    tokenizer: Any = None
    is_bytes = False

    @staticmethod
    def encode(line: str) -> list[int]:
        text = json.loads(line)[_KEY]
        ids = list(text.encode("utf-8")) if Simple.is_bytes else Simple.tokenizer.tokenize(text)
        return ids if ids[-1:] == [Simple.tokenizer.eod] else [*ids, Simple.tokenizer.eod]


def simple(sample: Path, prefix: str, choice: Any, workers: int) -> dict[str, float]:
    from megatron_cod.data.megatron_api import DType, IndexedDatasetBuilder

    Simple.tokenizer, Simple.is_bytes = choice.build(), choice.type == "ByteLevelTokenizer"
    dtype = DType.optimal_dtype(Simple.tokenizer.vocab_size)
    with measured() as figures, sample.open(encoding="utf-8") as lines:
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
        if workers == 1:
            for line in lines:
                ids = Simple.encode(line)
                builder.add_document(ids, [len(ids)])
        else:
            with multiprocessing.get_context("fork").Pool(workers) as pool:
                for ids in pool.imap(Simple.encode, lines, 32):
                    builder.add_document(ids, [len(ids)])
                pool.close()
                pool.join()
        builder.finalize(f"{prefix}.idx")
        return figures()


def this(sample: Path, prefix: str, choice: Any, workers: int) -> dict[str, float]:
    from megatron_cod.data.preprocessing import run
    from megatron_cod.data.preprocessing.job import PreprocessJob
    from megatron_cod.data.tokenizers import document_encoder

    encoder = document_encoder.DocumentEncoder(choice, append_eod=True)
    run.DocumentEncoder = lambda *_: encoder  # type: ignore[assignment, misc]  # loaded already, as in the loop
    with measured() as figures:
        run.preprocess(PreprocessJob([str(sample)], prefix, choice, append_eod=True, workers=workers))
        return figures()


def datasets(sample: Path, prefix: str, choice: Any, workers: int) -> dict[str, float]:
    os.environ |= {"HF_HOME": str(Path(prefix).parent), "HF_DATASETS_OFFLINE": "1"}
    import datasets as library

    library.disable_progress_bars()
    inner = None if choice.type == "ByteLevelTokenizer" else choice.build()._tokenizer.tokenizer

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        texts = batch[_KEY]
        if inner is None:
            return {"ids": [list(text.encode("utf-8")) for text in texts]}
        return {"ids": inner.encode(texts) if hasattr(inner, "piece_to_id") else inner(texts).input_ids}

    with measured() as figures:
        loaded = library.load_dataset("json", data_files=str(sample), split="train")
        loaded.map(encode, batched=True, remove_columns=[_KEY], num_proc=workers if workers > 1 else None)
        return figures()


def run_one(args: argparse.Namespace) -> None:
    """A single measurement, printed as JSON."""
    from megatron_cod.data.tokenizers.choice import TokenizerChoice

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    choice = TokenizerChoice(args.tokenizer_type, args.tokenizer_model)
    way = {"simple": simple, "this": this, "datasets": datasets}[args.one]
    print(json.dumps(way(Path(args.input[0]), args.input[1], choice, args.workers[0])))


def call(args: argparse.Namespace, way: str, workers: int, sample: Path, prefix: str) -> dict[str, float]:
    model = [] if args.tokenizer_model is None else ["--tokenizer-model", str(args.tokenizer_model)]
    command = [sys.executable, __file__, "--one", way, "--workers", str(workers), "--input", str(sample), prefix]
    done = subprocess.run(
        [*command, "--tokenizer-type", args.tokenizer_type, *model], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"{way} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    args = parse_args()
    if args.one:
        run_one(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "sample.jsonl"
        documents, size = write_sample(args.input, args.megabytes * 1e6, sample)
        print(f"{documents:,} documents, {size / 1e6:.1f} MB of text; {args.rounds} rounds")
        print(f"{'way':10} {'workers':>7} {'MB/s':>8} {'MB/s a core':>11} {'times simple':>12}  (medians)")
        for workers in args.workers:
            figures: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
            for number in range(args.rounds):
                for way in args.ways:
                    place = Path(folder) / f"{workers}-{number}-{way}"
                    place.mkdir()
                    figures[way].append(call(args, way, workers, sample, str(place / "d")))
            for ending in ("bin", "idx") if {"simple", "this"} <= set(args.ways) else ():
                one = Path(folder) / f"{workers}-0-simple" / f"d.{ending}"
                if not filecmp.cmp(
                    one, Path(folder) / f"{workers}-0-this" / f"d_text_document.{ending}", shallow=False
                ):
                    raise UserError(f"the .{ending} of this project differs from that of the simple loop")
            for way, found in figures.items():
                print_row(way, workers, size / 1e6, found, figures.get("simple", found))


def print_row(way: str, workers: int, size: float, found: list[dict[str, float]], base: list[dict[str, float]]) -> None:
    rate = statistics.median(size / each["seconds"] for each in found)
    of_core = statistics.median(size / each["processor_seconds"] for each in found)
    times = statistics.median(one["seconds"] / each["seconds"] for one, each in zip(base, found, strict=True))
    print(f"{way:10} {workers:>7} {rate:>8.2f} {of_core:>11.2f} {times:>12.2f}", flush=True)


if __name__ == "__main__":
    run_tool(main)
