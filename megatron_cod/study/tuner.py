"""The search for the best learning rate of an arm: a geometric grid that grows until its best rate is inside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DIVERGED = math.inf
"""The loss of a rate at which a run diverged: worse than any."""


@dataclass(frozen=True)
class Grid:
    """Rates to begin with, ascending, and by how many rates the grid may grow at each side."""

    rates: tuple[float, ...]
    extend: int

    @property
    def factor(self) -> float:
        """From one rate to the next."""
        return (self.rates[-1] / self.rates[0]) ** (1 / (len(self.rates) - 1)) if len(self.rates) > 1 else 2.0

    def below(self, number: int) -> float:
        """The rate so many places below the grid."""
        return rounded(self.rates[0] / self.factor**number)

    def above(self, number: int) -> float:
        """The rate so many places above the grid."""
        return rounded(self.rates[-1] * self.factor**number)


def rounded(rate: float) -> float:
    """Four digits: a rate is a part of names and of command lines."""
    return float(f"{rate:.4g}")


@dataclass(frozen=True)
class Tuned:
    """The best rate of an arm. ``edge``: why it may not be the optimum; None where worse rates are at both sides."""

    rate: float
    loss: float
    edge: str | None


def needed(curve: Mapping[float, float], grid: Grid) -> list[float]:
    """Rates to be run next: those of the grid, then one beyond an edge where the best is; none where the search is over.

    curve: rate -> mean validation loss over the tuning seeds, ``DIVERGED`` where one of them diverged.
    """
    missing = [rate for rate in grid.rates if rate not in curve]
    if missing:
        return missing
    lowest, highest = min(curve), max(curve)
    below = sum(rate < grid.rates[0] for rate in curve)
    above = sum(rate > grid.rates[-1] for rate in curve)
    if all(loss == DIVERGED for loss in curve.values()):
        return [grid.below(below + 1)] if below < grid.extend else []
    best = best_of(curve)
    if best == lowest and below < grid.extend:
        return [grid.below(below + 1)]
    if best == highest and above < grid.extend:
        return [grid.above(above + 1)]
    return []


def best_of(curve: Mapping[float, float]) -> float:
    """The rate of the lowest loss; of equal ones the lower rate."""
    return min(curve, key=lambda rate: (curve[rate], rate))


def tuned(curve: Mapping[float, float], grid: Grid) -> Tuned | None:
    """The outcome of a search that is over; None while rates are needed, or where every rate diverged."""
    if needed(curve, grid) or not curve:
        return None
    best = best_of(curve)
    if curve[best] == DIVERGED:
        return None
    edge = "lowest rate tried" if best == min(curve) else "highest rate tried" if best == max(curve) else None
    return Tuned(best, curve[best], edge)


def sensitivity(curve: Mapping[float, float], rates: Sequence[float], start: float) -> float | None:
    """Learning-rate sensitivity (Wortsman et al., arXiv 2309.14322): the mean excess of the loss over the curve's best.

    rates: the range, the same for all arms. start: the loss at initialization, which replaces any above it. None where
    a rate was not run.
    """
    if any(rate not in curve for rate in rates):
        return None
    best = min(curve.values())
    if not math.isfinite(best):
        return None
    return sum(min(curve[rate], start) - best for rate in rates) / len(rates)
