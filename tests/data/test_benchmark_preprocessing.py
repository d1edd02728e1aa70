"""tools/benchmark_preprocessing.py, which refuses to compare ways whose files differ."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_cod.data.sample_corpus import sample_corpus_path

Tool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_measures_all_three_ways(tool: Tool, sentencepiece_model: Path) -> None:
    pytest.importorskip("datasets")
    tokenizer = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", sentencepiece_model]
    ways = ["--ways", "simple", "this", "datasets", "--rounds", 1, "--workers", 1, 2]
    done = tool("benchmark_preprocessing.py", "--input", sample_corpus_path(), *tokenizer, *ways)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[:2] for row in rows] == [[way, n] for n in "12" for way in ("simple", "this", "datasets")]
    assert all(float(value) > 0 for row in rows for value in row[2:])
    assert "24 documents, 0.9 MB of text" in done.stdout
