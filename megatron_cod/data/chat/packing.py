"""Which samples are in which row, by epoch. Depends on lengths, seed and epoch alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

Row = Sequence[int]
"""Numbers of the samples of a row; none is a row of padding."""
Plan = Callable[[int], Row]
"""Index of a row in the order of training -> its samples."""


def best_fit(lengths: Sequence[int] | np.ndarray, size: int) -> list[list[int]]:
    """Bin packing, best fit: each item, in the order given, goes into the fullest bin that still takes it.

    Longest first is the good order. How full the bins become depends on the lengths alone, not on who has them.
    """
    rows: list[list[int]] = []
    by_space: list[deque[int]] = [deque() for _ in range(size + 1)]
    open_spaces = 0  # bit n is set while a row with n positions left is there
    for item, length in enumerate(lengths):
        length = int(length)
        assert 0 < length <= size
        fitting = open_spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = by_space[space].popleft()
            if not by_space[space]:
                open_spaces &= ~(1 << space)
        else:
            space, row = size, len(rows)
            rows.append([])
        rows[row].append(item)
        if space > length:
            by_space[space - length].append(row)
            open_spaces |= 1 << (space - length)
    return rows


class Epochs:
    """Rows of one epoch after the other, each shuffled again."""

    def __init__(
        self, lengths: np.ndarray, size: int, *, pack: bool, seed: int | None, epochs: int | None = None
    ) -> None:
        """lengths: positions of each sample. pack: False gives each sample a row. seed: None leaves the order as it is.
        epochs: rows behind so many are padding."""
        self._lengths, self._size, self._pack, self._seed, self._epochs = lengths, size, pack, seed, epochs
        self._epoch, self._rows = -1, [[0]]
        self.rows_an_epoch = len(self._of_epoch(0))

    def __call__(self, index: int) -> Row:
        """The samples of a row of training."""
        epoch, place = divmod(index, self.rows_an_epoch)
        if self._epochs is not None and epoch >= self._epochs:
            return []
        if epoch != self._epoch:
            self._epoch, self._rows = epoch, self._of_epoch(epoch)
        return self._rows[place]

    def _of_epoch(self, epoch: int) -> list[list[int]]:
        draw = None if self._seed is None else np.random.default_rng([self._seed, epoch])
        order = np.arange(len(self._lengths)) if draw is None else draw.permutation(len(self._lengths))
        if not self._pack:
            return [[int(number)] for number in order]
        order = order[np.argsort(-self._lengths[order], kind="stable")]
        rows = [[int(order[item]) for item in row] for row in best_fit(self._lengths[order], self._size)]
        return rows if draw is None else [rows[number] for number in draw.permutation(len(rows))]


class Repeated:
    """The first rows of a plan, and padding up to ``count``, over and over: each validation sees the same."""

    def __init__(self, plan: Epochs, count: int) -> None:
        self._plan, self._count = plan, count

    def __call__(self, index: int) -> Row:
        """The samples of a row of validation."""
        place = index % self._count
        return self._plan(place) if place < self._plan.rows_an_epoch else []
