"""Megatron's `.idx`: a header, the length of each sequence, where each begins in `.bin`, and the bounds of
documents."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_cod.errors import UserError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, documents + 1
_DTYPES: dict[int, type[np.number]] = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_AT_ONCE = 1 << 20  # sequences


@dataclass(frozen=True)
class Index:
    """What an index records of its `.bin`. `lengths` and `begins` (bytes) [sequences] are mapped from the file."""

    dtype: type[np.number]
    sequences: int
    documents: int
    tokens: int
    lengths: np.ndarray
    begins: np.ndarray


def write_index(path: Path, dtype: type[np.number], lengths: Path, documents: int) -> None:
    """Write the index of documents that are one sequence each; the file `lengths` holds theirs as int32 [documents].

    Works through the documents a million at a time.
    """
    code = next(code for code, known in _DTYPES.items() if known is dtype)
    steps = [range(start, min(start + _AT_ONCE, documents)) for start in range(0, documents, _AT_ONCE)]
    with path.open("wb") as file, lengths.open("rb") as source:
        file.write(_HEADER.pack(_MAGIC, 1, code, documents, documents + 1))
        for step in steps:
            file.write(source.read(4 * len(step)))
        source.seek(0)
        begin = 0
        for step in steps:
            sizes = np.fromfile(source, np.int32, len(step)).astype(np.int64) * np.dtype(dtype).itemsize
            ends = begin + np.cumsum(sizes)
            (ends - sizes).tofile(file)
            begin = int(ends[-1])
        for start in range(0, documents + 1, _AT_ONCE):
            np.arange(start, min(start + _AT_ONCE, documents + 1), dtype=np.int64).tofile(file)


def read_index(path: Path, remake: str) -> Index:
    """Raises UserError when the index is damaged, ending in `remake`: what to do."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if header[: len(_MAGIC)] != _MAGIC:
        raise UserError(f"{path} is not a Megatron index: it begins with {header[:9]!r}; {remake}")
    if len(header) < _HEADER.size:
        raise UserError(f"{path} is cut off: {size} bytes, not even a header; {remake}")
    _, version, code, sequences, boundaries = _HEADER.unpack(header)
    if version != 1:
        raise UserError(f"{path} has index version {version}, Megatron reads version 1; {remake}")
    if code not in _DTYPES:
        raise UserError(f"{path} has dtype code {code}, which is no integer type of Megatron's; {remake}")
    dtype = _DTYPES[code]
    expected = _HEADER.size + sequences * 12 + boundaries * 8
    # A multimodal index has one more byte a sequence.
    if size not in (expected, expected + sequences):
        raise UserError(
            f"{path} has {size} bytes, but its header describes {sequences} sequences = {expected} bytes: "
            f"cut off or damaged; {remake}"
        )
    content = np.memmap(path, mode="r")[_HEADER.size :]
    lengths = content[: sequences * 4].view(np.int32)
    pointers = content[sequences * 4 : sequences * 12].view(np.int64)
    bounds = content[sequences * 12 : sequences * 12 + boundaries * 8].view(np.int64)
    ends = np.cumsum(lengths, dtype=np.int64)
    item = np.dtype(dtype).itemsize
    good = (
        boundaries > 0
        and bounds[0] == 0
        and bounds[-1] == sequences
        and bool(np.all(np.diff(bounds) >= 0))
        and (sequences == 0 or bool(lengths.min() >= 0))
        and np.array_equal(pointers, (ends - lengths) * item)
    )
    if not good:
        raise UserError(f"{path} is damaged: its lengths, offsets and documents contradict each other; {remake}")
    return Index(dtype, sequences, boundaries - 1, int(ends[-1]) if sequences else 0, lengths, pointers)
