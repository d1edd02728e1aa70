"""Which tokens are in which row: windows over streams, so that every token is predicted once, with context before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Windows:
    """Rows of one set of tokens, an entry of each array a row: as inputs `length` tokens, as labels the same one further.

    `label`: where in the ids the first label stands; `counted`: the first position whose loss counts, those before it are
    context; `prefixed`: whether the first input is the prefix token, and not the token before the label.
    """

    label: np.ndarray
    length: np.ndarray
    counted: np.ndarray
    prefixed: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def predicted(self) -> int:
        """How many tokens all rows together predict."""
        return int((self.length - self.counted).sum())


def plan_windows(starts: np.ndarray, size: int, stride: int, prefixed: bool) -> Windows:
    """Windows of up to `size` positions over each stream, which begin `stride` apart.

    starts: where each stream begins in the ids, and the end of the last, [streams + 1]. A stream's first window counts
    all of its positions, each further one the `stride` new ones, the last what is left. prefixed: a token is before
    each stream, so that its first token is predicted as well; otherwise it is context only.
    """
    assert 1 <= stride <= size
    lead = 0 if prefixed else 1
    positions = np.maximum(np.diff(starts) - lead, 0)
    rows = np.where(positions > 0, 1 + np.maximum(positions - size + stride - 1, 0) // stride, 0)
    stream = np.repeat(np.arange(len(positions)), rows)
    number = np.arange(len(stream)) - np.repeat(np.cumsum(rows) - rows, rows)  # of a window in its stream
    begin = number * stride
    length = np.minimum(begin + size, positions[stream]) - begin
    counted = np.where(number == 0, 0, size - stride)
    return Windows(np.asarray(starts)[stream] + lead + begin, length, counted, (number == 0) & prefixed)


def cut_row(
    ids: np.ndarray, windows: Windows, row: int, prefix: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(inputs, labels, which of them count) of one row, [length] each."""
    label, length = int(windows.label[row]), int(windows.length[row])
    labels = np.asarray(ids[label : label + length], np.int64)
    if windows.prefixed[row]:
        assert prefix is not None
        inputs = np.concatenate([[prefix], labels[:-1]])
    else:
        inputs = np.asarray(ids[label - 1 : label - 1 + length], np.int64)
    return inputs, labels, np.arange(length) >= windows.counted[row]
