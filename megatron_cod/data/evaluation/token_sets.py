"""Sets of tokens to measure on: `.bin/.idx` datasets as they are, and what raw text becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_cod.data.datasets.check import check_prefix
from megatron_cod.data.datasets.tokenizer_match import TrainedWith, difference
from megatron_cod.errors import UserError


@dataclass(frozen=True)
class TokenSet:
    """One row of the result. `group` names the input it came from; several domains of one input share it."""

    name: str
    group: str
    ids: np.ndarray
    """[tokens]; memory-mapped where it is a dataset on disk."""
    starts: np.ndarray
    """Where each document begins, and the end, [documents + 1]."""
    text_bytes: int | None
    """UTF-8 bytes of the text; None if unknown."""

    @property
    def documents(self) -> int:
        return len(self.starts) - 1

    def streams(self, by_document: bool) -> np.ndarray:
        """Boundaries of what is predicted in one go: a document each, or everything."""
        return self.starts if by_document else self.starts[[0, -1]]


@dataclass(frozen=True)
class Source:
    """What a user named: `[NAME=]PATH`."""

    name: str
    path: str

    @property
    def is_dataset(self) -> bool:
        """Whether it is meant as a prefix of `.bin/.idx`; otherwise a text file or a glob of some."""
        return any(Path(f"{self.path}{end}").is_file() for end in (".idx", ".bin")) or not _names_text(self.path)


def _names_text(path: str) -> bool:
    return Path(path).is_file() or any(sign in path for sign in "*?[") or bool(set(Path(path).suffixes) & _TEXT_ENDS)


_TEXT_ENDS = {".jsonl", ".ndjson", ".json", ".txt", ".text", ".md"}


def parse_sources(given: Sequence[str]) -> list[Source]:
    """The sources that a command line names; UserError for a name that is empty or given twice."""
    found = []
    for word in given:
        name, separator, path = word.partition("=")
        if not separator:
            name, path = Path(word).name.removesuffix(".idx").removesuffix(".bin"), word
        if not name or not path:
            raise UserError(f"--eval-data {word!r}: give [NAME=]PATH")
        found.append(Source(name, path))
    names = [source.name for source in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"--eval-data has the name {twice[0]} twice; give NAME=PATH with another name")
    return found


def read_dataset(source: Source, vocabulary: int | None, tokenizer: TrainedWith | None) -> TokenSet:
    """A `.bin/.idx` dataset, memory-mapped.

    vocabulary: rows of the model's embedding. tokenizer: the model's.
    UserError where the dataset is missing, damaged, empty, beyond the vocabulary, or of another tokenizer.
    """
    summary = check_prefix(source.path, vocab_size=vocabulary)
    differs = None if summary.record is None or tokenizer is None else difference(summary.record, tokenizer)
    if differs is not None:
        raise UserError(
            f"dataset {source.path} {differs}; make it again from the text, or give the text itself to --eval-data"
        )
    from megatron_cod.data.megatron_api import IndexedDataset

    index = IndexedDataset(source.path).index
    lengths, documents = index.sequence_lengths, index.document_indices
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    ids = np.memmap(f"{source.path}.bin", dtype=summary.dtype, mode="r")
    known = summary.record.text_bytes if summary.record is not None else None
    return TokenSet(source.name, source.name, ids, ends[documents], known)
