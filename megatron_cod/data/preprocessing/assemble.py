"""A worker's task in the final merge: write one piece of the output where it belongs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_cod.data.preprocessing.plan import Plan
from megatron_cod.data.preprocessing.token_runs import shuffle_keys
from megatron_cod.data.preprocessing.worker_pool import Report

_WRITE_BYTES = 1 << 23


@dataclass(frozen=True)
class Target:
    """The files of one dataset while it is written: tokens, and the length of each document as int32."""

    tokens: Path
    lengths: Path


@dataclass(frozen=True)
class Assembly:
    """What workers have in common; `targets` [splits][keys]."""

    plan: Plan
    targets: Sequence[Sequence[Target]]
    item: int


@dataclass(frozen=True)
class _Documents:
    """Documents of one run that follow each other there: their table and splits, and per key where each begins, in
    tokens."""

    run: int
    table: np.ndarray
    codes: np.ndarray
    starts: np.ndarray  # [documents, keys]


def write_piece(what: Assembly, number: int, report: Report) -> None:
    """Write the documents of piece `number` into every dataset; what is written does not depend on any other piece."""
    plan = what.plan
    sources = list(_sources(plan, number))
    table = np.concatenate([source.table for source in sources])
    codes = np.concatenate([source.codes for source in sources])
    starts = np.concatenate([source.starts for source in sources])
    owners = np.repeat(np.arange(len(sources)), [len(source.table) for source in sources])
    order = np.arange(len(table))
    if plan.seed is not None:
        order = np.argsort(shuffle_keys(plan.seed, table), kind="stable")
    for key in range(table["lengths"].shape[1]):
        data = [_mapped(plan, source.run, key) for source in sources]
        for split, targets in enumerate(what.targets):
            chosen = order[(codes[order] == split) & (table["lengths"][order, key] > 0)]
            lengths = table["lengths"][chosen, key]
            begins = starts[chosen, key] * what.item
            views = (
                data[owner][begin : begin + length * what.item]
                for owner, begin, length in zip(owners[chosen].tolist(), begins.tolist(), lengths.tolist(), strict=True)
            )
            tokens_before = int(plan.tokens[:number, split, key].sum())
            documents_before = int(plan.documents[:number, split, key].sum())
            _write_at(targets[key].tokens, tokens_before * what.item, views)
            _write_at(targets[key].lengths, documents_before * 4, [memoryview(lengths.astype("<i4").tobytes())])
    report(0, int(plan.documents[number].sum()), int(plan.tokens[number].sum()), 0)


def _sources(plan: Plan, number: int) -> Iterator[_Documents]:
    """What a piece is made of, in the order of the input."""
    if plan.width is None:
        table = np.array(plan.runs[number].table())
        yield _Documents(number, table, plan.codes(number), _begins(table, 0))
        return
    for run, source in enumerate(plan.runs):
        ranges = source.ranges()[:, [number * plan.width, (number + 1) * plan.width]]
        first, last = int(ranges[0, 0]), int(ranges[0, 1])
        table = np.array(source.table()[first:last])
        yield _Documents(run, table, plan.codes(run)[first:last], _begins(table, ranges[1:, 0]))


def _begins(table: np.ndarray, first: int | np.ndarray) -> np.ndarray:
    lengths = table["lengths"].astype(np.int64)
    return np.cumsum(lengths, axis=0) - lengths + first


def _mapped(plan: Plan, run: int, key: int) -> memoryview:
    path = plan.runs[run].tokens_path(key)
    return memoryview(np.memmap(path, np.uint8, "r")) if path.stat().st_size else memoryview(b"")


def _write_at(path: Path, place: int, views: Iterator[memoryview] | Sequence[memoryview]) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        held: list[memoryview] = []
        size = 0
        for view in views:
            held.append(view)
            size += len(view)
            if size >= _WRITE_BYTES:
                file.write(b"".join(held))
                held, size = [], 0
        file.write(b"".join(held))


def prepare(targets: Sequence[Sequence[Target]]) -> None:
    """Empty files for every dataset."""
    for target in (each for row in targets for each in row):
        target.tokens.write_bytes(b"")
        target.lengths.write_bytes(b"")


def flush_to_disk(path: Path) -> None:
    """See to it that a file outlives a loss of power."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
