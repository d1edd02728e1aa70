"""Assign whole documents to train, valid and test."""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction
from itertools import accumulate

import numpy as np

from megatron_cod.errors import UserError

NAMES = ("train", "valid", "test")


class DocumentSplitter(ABC):
    """Which of `names` each document belongs to."""

    names: tuple[str, ...]

    @abstractmethod
    def codes(self, hashes: np.ndarray, ordinals: np.ndarray) -> np.ndarray:
        """Places in `names` [documents], uint8. hashes: uint64 [documents] of the texts. ordinals: int64 [documents],
        the number (from 0) of each among all documents written."""


class ByHash(DocumentSplitter):
    """By the text of a document alone: it stays in its split when others are added, omitted or read in another order, and
    a text that comes twice is in one split both times. Shares are met on average."""

    def __init__(self, weights: dict[str, Fraction]) -> None:
        self.names = tuple(weights)
        bounds = list(accumulate(weights.values()))[:-1]
        self._bounds = np.array([int(bound * 2**64) for bound in bounds], np.uint64)

    def codes(self, hashes: np.ndarray, ordinals: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._bounds, hashes, side="right").astype(np.uint8)


class EveryNth(DocumentSplitter):
    """Every N-th document, in the order of the input, is for validation: exact, for corpora of few documents."""

    names = ("train", "valid")

    def __init__(self, every: int) -> None:
        self._every = every

    def codes(self, hashes: np.ndarray, ordinals: np.ndarray) -> np.ndarray:
        return ((ordinals + 1) % self._every == 0).astype(np.uint8)


def make_splitter(split: str | None, holdout_every: int | None) -> DocumentSplitter | None:
    """A splitter from `--split 90,5,5` or `--holdout-every N`, or None when neither is given.

    Raises UserError for both at once, weights that are not two or three non-negative numbers, a zero
    weight for train, or N below 2.
    """
    if split is not None and holdout_every is not None:
        raise UserError("give --split or --holdout-every, not both")
    if holdout_every is not None:
        if holdout_every < 2:
            raise UserError(f"--holdout-every {holdout_every} leaves nothing to train on; give 2 or more")
        return EveryNth(holdout_every)
    if split is None:
        return None
    try:
        values = [Fraction(part.strip()) for part in split.split(",")]
    except (ValueError, ZeroDivisionError):
        values = []
    if not 2 <= len(values) <= len(NAMES) or min(values) < 0 or values[0] == 0:
        raise UserError(f"--split {split} is not TRAIN,VALID or TRAIN,VALID,TEST: such as 90,5,5, the first above 0")
    total = sum(values)
    return ByHash({name: value / total for name, value in zip(NAMES, values, strict=False) if value})
