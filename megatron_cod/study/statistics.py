"""Paired comparison of two arms over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

Losses = Mapping[int, float | None]
"""Seed -> loss; None where the run diverged."""


@dataclass(frozen=True)
class Difference:
    """An arm minus another, at the seeds where neither diverged."""

    values: tuple[float, ...]
    """By seed, ascending."""
    diverged: tuple[int, int]
    """Seeds at which the arm diverged, and the other."""

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None for fewer than two seeds."""
        return statistics.stdev(self.values) / math.sqrt(len(self.values)) if len(self.values) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95%, by Student's t."""
        if self.error is None or self.mean is None:
            return None
        half = student_quantile(0.975, len(self.values) - 1) * self.error
        return self.mean - half, self.mean + half

    @property
    def one_sign(self) -> bool:
        """Whether all seeds agree which is lower."""
        return bool(self.values) and (max(self.values) < 0 or min(self.values) > 0)

    def verdict(self, errors: float) -> str:
        """better, worse, or no difference shown: beyond so many standard errors, with all seeds of one sign.

        An arm that diverged at a seed is not better, and where the other one alone did, no number measures by how much.
        """
        ours, theirs = self.diverged
        if ours or theirs:
            if ours and theirs:
                return "both diverged"
            return "diverged" if ours else "the other diverged"
        if self.error is None or self.mean is None:
            return "one seed: no verdict"
        if not self.one_sign or abs(self.mean) <= errors * self.error:
            return "no difference shown"
        return "better" if self.mean < 0 else "worse"


def paired(arm: Losses, other: Losses) -> Difference:
    """The difference over the seeds, which must be the same for both."""
    assert set(arm) == set(other), (sorted(arm), sorted(other))
    pairs = [(arm[seed], other[seed]) for seed in sorted(arm)]
    return Difference(
        tuple(ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None),
        (sum(ours is None for ours, _ in pairs), sum(theirs is None for _, theirs in pairs)),
    )


def deviation(losses: Losses) -> float | None:
    """Standard deviation over the seeds that did not diverge; None for fewer than two."""
    good = [loss for loss in losses.values() if loss is not None]
    return statistics.stdev(good) if len(good) > 1 else None


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t above its median, by bisection of its integral."""
    low, high = 0.0, 1.0
    while _student_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _student_cdf(value: float, freedom: int) -> float:
    """With t = sqrt(n) tan(a) the density is proportional to cos(a)^(n - 1): Simpson's rule over the angle."""
    angle, parts = math.atan(value / math.sqrt(freedom)), 400
    width = angle / parts
    weights = (1 if place in (0, parts) else 4 if place % 2 else 2 for place in range(parts + 1))
    total = sum(weight * math.cos(place * width) ** (freedom - 1) for place, weight in enumerate(weights))
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return 0.5 + constant * total * width / 3
