"""Interleaved timing: every contestant once a round, in random order, compared round by round.

A shared machine drifts: its clock, its neighbours and its caches change by more than the differences of interest. Two
steps of one round see the same machine, so the ratio is taken inside a round and the median over rounds.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""``cpu`` counts only this process's work: steadier beside other programs, blind to waiting."""

_RESAMPLES = 4000


@dataclass(frozen=True)
class Lap:
    """One training step, in seconds."""

    total: float
    optimizer: float
    """Part of ``total`` spent in the optimizer's step."""
    loss: float

    @property
    def forward_backward(self) -> float:
        """The rest: zeroing gradients, forward, backward, gradient reduction, bookkeeping."""
        return self.total - self.optimizer


Step = Callable[[], Lap]
Laps = dict[str, list[Lap]]


@dataclass(frozen=True)
class Ratio:
    """Median of per-round ratios with its bootstrap 95% interval."""

    median: float
    low: float
    high: float


def interleave(steps: Mapping[str, Step], *, rounds: int, warmup: int, seed: int = 0) -> Laps:
    """Run every step once a round, in an order drawn again each round; the first ``warmup`` rounds are dropped."""
    order, draw = list(steps), random.Random(seed)
    laps: Laps = {name: [] for name in steps}
    gc.disable()  # a collection would fall on whoever runs when the counter is full
    gc.freeze()  # what is there already stays: collecting between steps then costs nothing
    try:
        for number in range(-warmup, rounds):
            draw.shuffle(order)
            for name in order:
                gc.collect()
                lap = steps[name]()
                if number >= 0:
                    laps[name].append(lap)
    finally:
        gc.unfreeze()
        gc.enable()
    return laps


def ratio(ours: Sequence[float], reference: Sequence[float], seed: int = 0) -> Ratio:
    """ours / reference, paired by round. Both hold one time a round, in the same order of rounds."""
    if not ours or len(ours) != len(reference):
        raise ValueError(f"ratios need one time a round from both, got {len(ours)} and {len(reference)}")
    per_round = [mine / theirs for mine, theirs in zip(ours, reference, strict=True)]
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(per_round, k=len(per_round))) for _ in range(_RESAMPLES))
    low, high = medians[int(0.025 * _RESAMPLES)], medians[int(0.975 * _RESAMPLES)]
    return Ratio(statistics.median(per_round), low, high)
