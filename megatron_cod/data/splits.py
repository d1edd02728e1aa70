"""Deal whole documents out to train, valid and test while reading, without knowing their number."""

from __future__ import annotations

from fractions import Fraction

NAMES = ("train", "valid", "test")


class DocumentSplitter:
    """Names the split of each next document. Depends on the order of documents and nothing else."""

    def __init__(self, weights: dict[str, Fraction], holdout_every: int | None = None) -> None:
        self.names = tuple(weights) if holdout_every is None else ("train", "valid")
        self._weights = weights
        self._every = holdout_every
        self._counts = dict.fromkeys(self.names, 0)

    def next(self) -> str:
        """The split furthest behind its share; with a holdout, valid for every N-th document."""
        number = sum(self._counts.values()) + 1
        if self._every is not None:
            name = "valid" if number % self._every == 0 else "train"
        else:
            name = max(self.names, key=lambda name: self._weights[name] * number - self._counts[name])
        self._counts[name] += 1
        return name


def make_splitter(split: str | None, holdout_every: int | None) -> DocumentSplitter | None:
    """A splitter from `--split 90,5,5` or `--holdout-every N`, or None when neither is given.

    Raises ValueError for both at once, weights that are not two or three non-negative numbers, a zero
    weight for train, or N below 2.
    """
    if split is not None and holdout_every is not None:
        raise ValueError("give --split or --holdout-every, not both")
    if holdout_every is not None:
        if holdout_every < 2:
            raise ValueError(f"--holdout-every {holdout_every} leaves nothing to train on; give 2 or more")
        return DocumentSplitter({}, holdout_every)
    if split is None:
        return None
    try:
        values = [Fraction(part.strip()) for part in split.split(",")]
    except (ValueError, ZeroDivisionError):
        values = []
    if not 2 <= len(values) <= len(NAMES) or min(values) < 0 or values[0] == 0:
        raise ValueError(f"--split {split} is not TRAIN,VALID or TRAIN,VALID,TEST: such as 90,5,5, the first above 0")
    total = sum(values)
    return DocumentSplitter({name: value / total for name, value in zip(NAMES, values, strict=False) if value})
