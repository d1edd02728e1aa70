"""Runs: the tokens of some documents of one part of the input, as a worker leaves them for the final merge.

A run is complete when its `.json` is there, which is written last and records where reading continues. So after a kill at
any moment the work continues behind the last complete run of each part, and no document is lost or doubled.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_cod.common.files import replacing
from megatron_cod.data.reading.skipped import MOST_EXAMPLES
from megatron_cod.errors import UserError

# Bytes of tokens, and documents, that a worker holds before it writes a run.
RUN_BYTES = 1 << 25
RUN_DOCUMENTS = 1 << 17
# A shuffled run notes where its documents begin in each of so many equal ranges of shuffle keys.
RANGES = 1 << 12
_LONGEST = np.iinfo(np.int32).max  # Megatron's index holds lengths as int32


def table_dtype(keys: int) -> np.dtype:
    """A document in a run: its input and place there, the hash of its text, and per key its tokens and bytes of
    text."""
    return np.dtype(
        [
            ("file", "<i4"),
            ("place", "<i8"),
            ("hash", "<u8", (2,)),
            ("lengths", "<i4", (keys,)),
            ("bytes", "<i8", (keys,)),
        ]
    )


def shuffle_keys(seed: int, table: np.ndarray) -> np.ndarray:
    """Pseudo-random uint64 [documents] that depend on the seed and on where a document stands: the order of a
    shuffle."""
    with np.errstate(over="ignore"):
        mixed = _mix(np.uint64(seed % 2**64) + table["file"].astype(np.uint64))
        return _mix(mixed ^ table["place"].astype(np.uint64))


def _mix(value: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@dataclass(frozen=True)
class Commit:
    """Content of a run's `.json`. `next` is the slice of the part and the place in it to continue at, None at the part's
    end; `input_bytes` counts bytes on disk read for the part so far. `examples` describe bad documents: file, byte at
    which the reading began, line counted from there, message."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    empty: int = 0
    bad: int = 0
    examples: list[tuple[int, int, int, str]] = field(default_factory=list)
    next: tuple[int, int | None] | None = None
    input_bytes: int = 0
    sums: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A complete run, in the folder `folder`."""

    folder: Path
    part: int
    number: int
    commit: Commit

    def path(self, kind: str) -> Path:
        return self.folder / f"{self.part:06d}-{self.number:05d}.{kind}"

    def tokens_path(self, key: int) -> Path:
        return self.path(f"tokens{key}")

    def is_whole(self) -> bool:
        """Whether its files are as they were written; reads them."""
        return all(_checksum(self.path(kind)) == asked for kind, asked in self.commit.sums.items())

    def table(self) -> np.ndarray:
        """Its documents [documents], as they are stored: in the order of the input, or of the shuffle; mapped."""
        return np.load(self.path("table.npy"), mmap_mode="r")

    def ranges(self) -> np.ndarray:
        """Of a shuffled run, int64 [1 + keys, RANGES + 1]: the first document of each range, and its first token."""
        return np.load(self.path("ranges.npy"), mmap_mode="r")


def runs_of_part(folder: Path, part: int) -> list[Run]:
    """The complete runs of a part, in order."""
    runs: list[Run] = []
    while True:
        run = Run(folder, part, len(runs), Commit())
        try:
            values = json.loads(run.path("json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # of a file that a loss of power has damaged
            return runs
        values["next"] = None if values["next"] is None else tuple(values["next"])
        runs.append(Run(folder, part, len(runs), Commit(**values)))


def whole_runs_of_part(folder: Path, part: int) -> list[Run]:
    """The complete runs of a part up to the first that is damaged; from there on they are declared incomplete."""
    runs = runs_of_part(folder, part)
    for number, run in enumerate(runs):
        if not run.is_whole():
            for later in runs[number:]:
                later.path("json").unlink()
            return runs[:number]
    return runs


class RunWriter:
    """Collects the documents of a part and writes them as runs. seed: of the shuffle, None to keep the order."""

    def __init__(self, folder: Path, part: int, first: int, keys: int, item: int, seed: int | None) -> None:
        self._folder, self._part, self._number = folder, part, first
        self._keys, self._item, self._seed = keys, item, seed
        self._begin()

    def _begin(self) -> None:
        self._rows: list[tuple[Any, ...]] = []
        self._tokens: list[list[bytes | bytearray]] = [[] for _ in range(self._keys)]
        self.size = self.empty = self.bad = 0
        self._examples: list[tuple[int, int, int, str]] = []

    def add(
        self, file: int, place: int, digest: bytes, tokens: Sequence[bytes | bytearray], sizes: Sequence[int]
    ) -> None:
        """One document: per key its tokens, as bytes, and its bytes of text. Raises UserError for one longer than
        Megatron can index."""
        lengths = [len(ids) // self._item for ids in tokens]
        if max(lengths) > _LONGEST:
            raise UserError(f"the document has {max(lengths)} tokens, more than Megatron's {_LONGEST}; cut it")
        hashed = (int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big"))
        self._rows.append((file, place, hashed, lengths, list(sizes)))
        for held, ids in zip(self._tokens, tokens, strict=True):
            held.append(ids)
            self.size += len(ids)

    @property
    def is_full(self) -> bool:
        return self.size >= RUN_BYTES or len(self._rows) >= RUN_DOCUMENTS

    @property
    def documents(self) -> int:
        return len(self._rows)

    def add_bad(self, file: int, start: int, line: int, message: str) -> None:
        self.bad += 1
        if len(self._examples) < MOST_EXAMPLES:
            self._examples.append((file, start, line, message))

    def commit(self, place: tuple[int, int | None] | None, input_bytes: int) -> Commit:
        """Write the run; it is complete when this returns. `place`: where to continue."""
        table = np.array(self._rows, table_dtype(self._keys))
        run = Run(self._folder, self._part, self._number, Commit())
        sums: dict[str, int] = {}
        if self._seed is not None:
            keys = shuffle_keys(self._seed, table)
            order = np.argsort(keys, kind="stable")
            table, keys = table[order], keys[order]
            self._tokens = [[held[place] for place in order] for held in self._tokens]
            sums["ranges.npy"] = _write(run.path("ranges.npy"), _saved(_ranges(keys, table)))
        for key, held in enumerate(self._tokens):
            sums[f"tokens{key}"] = _write(run.tokens_path(key), held)
        sums["table.npy"] = _write(run.path("table.npy"), _saved(table))
        commit = Commit(
            documents=len(table),
            tokens=int(table["lengths"].sum(dtype=np.int64)),
            text_bytes=int(table["bytes"].sum()),
            empty=self.empty,
            bad=self.bad,
            examples=self._examples,
            next=place,
            input_bytes=input_bytes,
            sums=sums,
        )
        _write(run.path("json"), [json.dumps(asdict(commit)).encode("utf-8")])
        self._number += 1
        self._begin()
        return commit


def _ranges(keys: np.ndarray, table: np.ndarray) -> np.ndarray:
    shift = np.uint64(64 - RANGES.bit_length() + 1)
    first = np.searchsorted(keys >> shift, np.arange(RANGES + 1, dtype=np.uint64))
    ends = np.cumsum(table["lengths"], axis=0, dtype=np.int64)
    starts = np.concatenate([np.zeros((1, ends.shape[1]), np.int64), ends])
    return np.concatenate([first[None, :], starts[first].T]).astype(np.int64)


def _saved(array: np.ndarray) -> list[bytes]:
    content = io.BytesIO()
    np.save(content, array)
    return [content.getvalue()]


def _write(path: Path, content: Sequence[bytes | bytearray]) -> int:
    """Write a file that is there whole or not at all after a kill; its checksum."""
    with replacing(path, os.getpid()) as part, part.open("wb") as file:
        file.writelines(content)
    checksum = 0
    for piece in content:
        checksum = zlib.crc32(piece, checksum)
    return checksum


def _checksum(path: Path) -> int | None:
    """As `_write` gave it; None when there is no such file."""
    if not path.is_file():
        return None
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def all_runs(folder: Path, parts: int) -> Iterator[Run]:
    """Every complete run in the order of the input."""
    for part in range(parts):
        yield from runs_of_part(folder, part)
