"""The small public-domain corpus shipped with the package."""

from __future__ import annotations

from pathlib import Path


def sample_corpus_path() -> Path:
    """Path of the sample: 24 speeches as JSON lines with the keys text, year and president.

    Source and licence are in README.md beside it; `tools/make_sample_corpus.py` made it.
    """
    return Path(__file__).parent / "sample" / "sotu_1998_2021.jsonl"
