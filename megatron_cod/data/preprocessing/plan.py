"""Decide which documents go where: duplicates, the number wanted, splits; and where each piece of the output begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_cod.data.preprocessing.duplicates import input_order, mark_duplicates
from megatron_cod.data.preprocessing.splits import DocumentSplitter
from megatron_cod.data.preprocessing.token_runs import RANGES, Run, shuffle_keys

LEFT_OUT = 255
# Bytes of tokens of a piece of a shuffled output, which is put in order in memory.
_PIECE_BYTES = 1 << 26


@dataclass(frozen=True)
class Plan:
    """The output as pieces that can be written apart: the documents of a run, or of a range of shuffle keys.

    `documents`, `tokens`, `text_bytes` int64 [pieces, splits, keys]: what each piece adds to each dataset. `taken`
    counts the documents that have text under one key at least, and go into the datasets of those keys; `duplicates`
    those omitted. `seed` of the shuffle and `width`, the ranges in a piece, are None for the order of the input.
    """

    runs: Sequence[Run]
    folder: Path
    documents: np.ndarray
    tokens: np.ndarray
    text_bytes: np.ndarray
    taken: int
    duplicates: int
    seed: int | None
    width: int | None

    def codes(self, run: int) -> np.ndarray:
        """The split of each document of a run as it is stored, or LEFT_OUT: uint8 [documents]."""
        return np.fromfile(self.folder / f"codes{run}", np.uint8)


def make_plan(
    runs: Sequence[Run],
    folder: Path,
    splitter: DocumentSplitter | None,
    keys: int,
    item: int,
    limit: int | None,
    deduplicate: bool,
    seed: int | None,
) -> Plan:
    """Goes through the runs one by one. limit: documents to take, counted before duplicates are omitted."""
    folder.mkdir(exist_ok=True)
    total = sum(run.commit.documents for run in runs)
    wanted = total if limit is None else min(limit, total)
    marks = mark_duplicates(runs, wanted, folder) if deduplicate else None
    splits = len(splitter.names) if splitter else 1
    width = None if seed is None else _width(sum(run.commit.tokens for run in runs) * item)
    pieces = len(runs) if width is None else RANGES // width
    sums = np.zeros((3, pieces, splits, keys), np.int64)
    read = kept = 0
    for number, run in enumerate(runs):
        table = run.table()
        order = input_order(table)
        take = np.arange(read, read + len(table)) < wanted
        if marks is not None:
            here = marks[read : read + len(table)]
            take[: len(here)] &= here == 0
        ordinals = kept + np.cumsum(take) - 1
        found = np.zeros(len(table), np.uint8)
        if splitter is not None:
            found = splitter.codes(np.ascontiguousarray(table["hash"][order, 0]), ordinals)
        codes = np.empty(len(table), np.uint8)
        codes[order] = np.where(take, found, LEFT_OUT)
        codes.tofile(folder / f"codes{number}")
        read, kept = read + len(table), kept + int(take.sum())
        if width is None:
            _add_up(sums[:, number : number + 1], table, codes, np.zeros(len(table), np.int64))
        else:
            _add_up(sums, table, codes, _piece_of(table, seed, width))
    duplicates = 0 if marks is None else int(np.count_nonzero(marks))
    return Plan(runs, folder, sums[0], sums[1], sums[2], kept, duplicates, seed, width)


def _width(size: int) -> int:
    """How many ranges of shuffle keys make a piece, a power of two."""
    pieces = min(RANGES, 1 << max(0, (size // _PIECE_BYTES).bit_length()))
    return RANGES // pieces


def _piece_of(table: np.ndarray, seed: int | None, width: int) -> np.ndarray:
    assert seed is not None
    shift = np.uint64(64 - (RANGES // width).bit_length() + 1)
    keys = shuffle_keys(seed, table)
    return (keys >> shift).astype(np.int64) if shift < 64 else np.zeros(len(table), np.int64)


def _add_up(sums: np.ndarray, table: np.ndarray, codes: np.ndarray, pieces: np.ndarray) -> None:
    """Add the documents of a run to `sums` [3, pieces, splits, keys]; pieces [documents]."""
    _, count, splits, keys = sums.shape
    taken = codes != LEFT_OUT
    places = pieces[taken] * splits + codes[taken]
    for key in range(keys):
        lengths, sizes = table["lengths"][taken, key].astype(np.int64), table["bytes"][taken, key]
        for kind, values in enumerate((lengths > 0, lengths, sizes)):
            # Sums of float64 are exact up to 2 ** 53: a piece is far below.
            added = np.bincount(places, values, minlength=count * splits)
            sums[kind, :, :, key] += added.astype(np.int64).reshape(count, splits)
