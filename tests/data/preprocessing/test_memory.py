"""A worker stays below 1 GB: documents of 100 MB, in every kind of file, for every kind of tokenizer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard

from megatron_cod.data.tokenizers.choice import TokenizerChoice
from tests.data.conftest import ROOT
from tests.data.tokenizers.tokenizer_kinds import sentencepiece_model as train_sentencepiece

LIMIT = 1_000_000_000
SIZE = 100_000_000


@pytest.fixture
def huge(speeches: list[str]) -> str:
    """Real text of 100 MB, with one character that makes Python take four bytes for each of them."""
    text = "\n".join(speeches)
    return (text * (SIZE // len(text) + 1))[: SIZE // 2] + "\U0001f600" + (text * (SIZE // len(text) + 1))[: SIZE // 2]


def json_line(path: Path, text: str) -> None:
    path.write_bytes(orjson.dumps({"text": text}) + b'\n{"text": "short"}\n')


def escaped_line(path: Path, text: str) -> None:
    """Each non-ASCII character as six bytes of the file."""
    path.write_text(json.dumps({"text": text.replace("e", "\u00e9")[: SIZE // 2]}) + "\n")


def zstandard_text(path: Path, text: str) -> None:
    path.write_bytes(zstandard.ZstdCompressor().compress(text.encode()))


def after_many_words(path: Path, text: str) -> None:
    """Behind documents that fill the memory of words."""
    with path.open("wb") as file:
        for start in range(0, 2_000_000, 20_000):
            words = " ".join(f"{number * 7919 % 2_000_000:x}ing" for number in range(start, start + 20_000))
            file.write(orjson.dumps({"text": words}) + b"\n")
        file.write(orjson.dumps({"text": text}) + b"\n")


def parquet(path: Path, text: str) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": ["short", text, "short"]}), path)


def many_lines(path: Path, text: str) -> None:
    with path.open("wb") as file:
        for start in range(0, len(text), 300):
            file.write(orjson.dumps({"text": text[start : start + 300]}) + b"\n")


# tools/preprocess_data.py, whose tasks write down the most memory that they held.
PROGRAM = """
import re, sys
from pathlib import Path
sys.path.insert(0, ROOT)
import preprocess_data
from megatron_cod.data.preprocessing import run as preprocess

def watched(task):
    def run(*arguments):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        result = task(*arguments)
        peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
        with open(LOG, "a") as file:
            file.write(f"{int(peak[1]) * 1024}\\n")
        return result
    return run

preprocess.encode_part, preprocess.write_piece = watched(preprocess.encode_part), watched(preprocess.write_piece)
"""
# The whole text is cut into words at once.
MUTANT = "from megatron_cod.data.tokenizers import word_cache; word_cache._WINDOW = 1 << 40"


def peaks(source: Path, choice: TokenizerChoice, *options: str, mutant: str = "") -> list[int]:
    """The most bytes that each task of two workers held."""
    log = source.with_name("peaks")
    program = f"ROOT, LOG = {str(ROOT / 'tools')!r}, {str(log)!r}\n{PROGRAM}{mutant}\npreprocess_data.main()"
    model = [] if choice.model is None else ["--tokenizer-model", str(choice.model)]
    command = [sys.executable, "-c", program, "--input", str(source), "--output-prefix", str(source.with_name("d"))]
    command += ["--tokenizer-type", choice.type, *model, "--append-eod", "--workers", "2", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in log.read_text().splitlines()]


@pytest.fixture
def kinds(sentencepiece_model: Path, huggingface_folder: Path, speeches: Sequence[str], tmp_path: Path) -> dict:
    (tmp_path / "unigram").mkdir()
    options = {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}
    return {
        "bytes": TokenizerChoice("ByteLevelTokenizer"),
        "pieces": TokenizerChoice("SentencePieceTokenizer", sentencepiece_model),
        "unigram": train_sentencepiece(tmp_path / "unigram", speeches[:4], **options),
        "byte level": TokenizerChoice("HuggingFaceTokenizer", huggingface_folder),
    }


@pytest.fixture
def away(tmp_path: Path) -> Iterator[Path]:
    """A folder for hundreds of megabytes, emptied at once."""
    yield tmp_path
    for path in tmp_path.iterdir():
        if path.is_file():
            os.truncate(path, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write", "kind", "options"),
    [
        ("d.jsonl", json_line, "bytes", []),
        ("d.jsonl", json_line, "pieces", []),
        ("d.jsonl", json_line, "unigram", []),
        ("d.jsonl", json_line, "byte level", []),
        ("d.jsonl", after_many_words, "pieces", []),
        ("d.jsonl", escaped_line, "pieces", []),
        ("d.txt.zst", zstandard_text, "pieces", ["--split-on", "file"]),
        ("d.parquet", parquet, "pieces", ["--shuffle-seed", "1"]),
        ("d.jsonl", many_lines, "bytes", ["--shuffle-seed", "1", "--deduplicate"]),
    ],
    ids=["bytes", "pieces", "unigram", "byte level", "many words", "escaped", "text", "parquet", "short documents"],
)
def test_worker_uses_less_than_a_gigabyte(
    away: Path, huge: str, kinds: dict, name: str, write: Any, kind: str, options: list[str]
) -> None:
    write(away / name, huge)
    found = peaks(away / name, kinds[kind], *options)
    print(f"at most {max(found) / 1e6:.0f} MB in {len(found)} tasks")
    assert max(found) < LIMIT


@pytest.mark.slow
def test_detects_mutant_that_uses_more(away: Path, huge: str, kinds: dict) -> None:
    json_line(away / "d.jsonl", huge)
    assert max(peaks(away / "d.jsonl", kinds["pieces"], mutant=MUTANT)) > LIMIT
