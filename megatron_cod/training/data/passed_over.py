"""A training set without the samples that rewinds skip."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from megatron_cod.checkpoint.rewinds import Rewind, read_rewinds


class _Gaps:
    """Samples of a dataset that are omitted: runs of them, apart and in order, by their places in the whole dataset."""

    def __init__(self) -> None:
        self._gaps: list[tuple[int, int]] = []  # first sample, and the one after the last
        # The index of the first sample after a gap, where those omitted are not counted; samples omitted up to that point.
        self._after: list[int] = []
        self._left_out: list[int] = [0]

    def place(self, index: int) -> int:
        """Where a sample is in the dataset. index: its number among those that are not omitted."""
        return index + self._left_out[bisect.bisect_right(self._after, index)]

    def leave_out(self, index: int, count: int) -> None:
        """Omit more: so many from this index on."""
        first, end = self.place(index), self.place(index + count - 1) + 1
        self._gaps = sorted([*(gap for gap in self._gaps if not first <= gap[0] < end), (first, end)])
        self._left_out = [0, *itertools.accumulate(end - first for first, end in self._gaps)]
        self._after = [first - before for (first, _), before in zip(self._gaps, self._left_out, strict=False)]


class PassedOver:
    """A training set without the samples that rewinds pass over; the same index gives the same sample at every start."""

    def __init__(self, dataset: Any, rewinds: Sequence[Rewind]) -> None:
        """rewinds: in the order they were done. Each is counted in the data that those before it left."""
        self._dataset, self._gaps = dataset, _Gaps()
        for one in rewinds:
            if one.samples:
                self._gaps.leave_out(one.first_sample, one.samples)
        self._samples = sum(one.samples for one in rewinds)

    def __len__(self) -> int:
        return len(self._dataset) - self._samples

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._gaps.place(index)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)


def passing_over(provider: Callable[..., Any], save: str | None) -> Callable[..., Any]:
    """Megatron's dataset provider, with what rewinds of ``save`` pass over omitted from the training set."""

    @functools.wraps(provider)  # takes its mark ``is_distributed`` along
    def passing(counts: Sequence[int], *rest: Any, **kwargs: Any) -> Any:
        rewinds = [one for one in read_rewinds(save) if one.samples] if save else []
        if not rewinds:
            return provider(counts, *rest, **kwargs)
        wanted = [counts[0] + sum(one.samples for one in rewinds), *counts[1:]]
        train, *others = provider(wanted, *rest, **kwargs)
        return (None if train is None else PassedOver(train, rewinds), *others)

    return passing
