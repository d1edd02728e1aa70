"""Verify a dataset before training, so that damage is one clear line and not a crash on many ranks."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_cod.data.datasets.index_file import Index, read_index
from megatron_cod.data.datasets.manifest import DatasetRecord, describes, read_record, record_path
from megatron_cod.data.datasets.tokenizer_match import TrainedWith, difference
from megatron_cod.errors import UserError

_REMAKE = "make the dataset again with megatron-cod preprocess"

# Up to this many tokens all are read; above it, evenly spaced windows that add up to as many.
SCAN_TOKENS = 1 << 26
_WINDOW = 1 << 20


@dataclass(frozen=True)
class DatasetSummary:
    """What a dataset holds. `max_token` is over the `scanned` tokens that were read; `record` is None
    when the dataset was not made by this project's tool."""

    prefix: str
    documents: int
    sequences: int
    tokens: int
    dtype: str
    max_token: int
    scanned: int
    record: DatasetRecord | None


def check_prefix(
    prefix: str | Path, *, vocab_size: int | None = None, trained_with: TrainedWith | None = None
) -> DatasetSummary:
    """Check the local dataset `prefix`.bin/.idx; returns what it holds.

    `vocab_size` is the number of rows of the model's embedding (padding included): every id must be
    below it. `trained_with` must agree with the tokenizer of the dataset's record. Meant for one rank
    before the distributed start; reads the index whole and at most `SCAN_TOKENS` tokens, memory-mapped.
    Raises UserError with one line: what was asked, what was found, what to do.
    """
    prefix = str(prefix)
    index_path, data_path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    _refuse_missing(prefix, index_path, data_path)
    index = read_index(index_path, _REMAKE)
    dtype, tokens = index.dtype, index.tokens
    item = np.dtype(dtype).itemsize
    size = data_path.stat().st_size
    if size != tokens * item:
        raise UserError(
            f"{data_path} has {size} bytes, but {index_path} describes {tokens} tokens of {item} bytes = "
            f"{tokens * item}: cut off, or from another run; {_REMAKE}"
        )
    if not tokens:
        raise UserError(f"dataset {prefix} is empty (0 tokens); check its input text, and {_REMAKE}")
    record = read_record(prefix)
    if record is not None:
        _compare(prefix, record, index, vocab_size, trained_with)
    max_token, scanned = _scan(prefix, np.memmap(data_path, dtype=dtype, mode="r"), vocab_size)
    if record is not None:
        _refuse_other_content(prefix, record)
    return DatasetSummary(
        prefix, index.documents, index.sequences, tokens, np.dtype(dtype).name, max_token, scanned, record
    )


def _refuse_other_content(prefix: str, record: DatasetRecord) -> None:
    if not describes(record, prefix):
        raise UserError(
            f"{record_path(prefix)} describes another dataset than {prefix}.bin and {prefix}.idx hold: they were changed "
            f"or replaced since it was written; {_REMAKE}, or remove {record_path(prefix)}"
        )


def _compare(
    prefix: str, record: DatasetRecord, index: Index, vocab_size: int | None, trained_with: TrainedWith | None
) -> None:
    """The record against the files beside it and against training; raises UserError for the first difference."""
    found = {"documents": index.documents, "tokens": index.tokens, "dtype": np.dtype(index.dtype).name}
    for name, value in found.items():
        if getattr(record, name) != value:
            raise UserError(
                f"{record_path(prefix)} does not belong to {prefix}.idx: it records {name} {getattr(record, name)}, the "
                f"index has {value}; {_REMAKE}"
            )
    if vocab_size is not None and record.vocab_size > vocab_size:
        raise UserError(
            f"dataset {prefix} was made with a vocabulary of {record.vocab_size} ids, but the model has "
            f"{vocab_size}; train with {' '.join(record.training_arguments)}"
        )
    differs = None if trained_with is None else difference(record, trained_with)
    if differs is not None:
        raise UserError(f"dataset {prefix} {differs}; train with {' '.join(record.training_arguments)}, or {_REMAKE}")


def _refuse_missing(prefix: str, index_path: Path, data_path: Path) -> None:
    missing = [path for path in (index_path, data_path) if not path.is_file()]
    if not missing:
        return
    if len(missing) == 1:
        raise UserError(f"dataset {prefix} is not complete: {missing[0]} is missing beside its other file; {_REMAKE}")
    asked = f"dataset {prefix} does not exist: neither {index_path} nor {data_path} was found"
    bare = prefix.removesuffix(".idx").removesuffix(".bin")
    if bare != prefix and Path(f"{bare}.idx").is_file():
        raise UserError(f"{asked}; give the prefix without the file's ending: {bare}")
    if Path(prefix).is_file():
        raise UserError(
            f"{prefix} is a file and no dataset; make one of it with megatron-cod preprocess --input {prefix}"
        )
    folder = index_path.parent
    if not folder.is_dir():
        raise UserError(f"{asked}; the folder {folder} does not exist")
    names = sorted(path.name.removesuffix(".idx") for path in folder.glob("*.idx"))
    wanted = index_path.name.removesuffix(".idx")
    near = [name for name in names if name.startswith(wanted)][:3]
    near = near or difflib.get_close_matches(wanted, names, 3) or names[:3]
    if near:
        raise UserError(f"{asked}; did you mean {' or '.join(str(folder / name) for name in near)}?")
    raise UserError(f"{asked}; the folder {folder} holds no dataset; make one with megatron-cod preprocess")


def _scan(prefix: str, data: np.ndarray, vocab_size: int | None) -> tuple[int, int]:
    """Largest id and number of ids read; UserError for an id outside 0..vocab_size-1."""
    if len(data) <= SCAN_TOKENS:
        starts = np.arange(0, len(data), _WINDOW)
    else:
        starts = np.linspace(0, len(data) - _WINDOW, SCAN_TOKENS // _WINDOW).astype(np.int64)
    largest = scanned = 0
    for start in starts:
        window = data[start : start + _WINDOW]
        low, high = int(window.min()), int(window.max())
        if low < 0 or (vocab_size is not None and high >= vocab_size):
            wrong = low if low < 0 else high
            place = int(start) + int(np.argmax(window == wrong))
            allowed = "ids are 0 or more" if vocab_size is None else f"the model has ids 0 to {vocab_size - 1}"
            raise UserError(
                f"dataset {prefix} holds token id {wrong} at position {place}, but {allowed}; "
                "train with the tokenizer it was made with"
            )
        largest, scanned = max(largest, high), scanned + len(window)
    return largest, scanned
