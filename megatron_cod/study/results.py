"""What one run of a study measured: a record that is the same whenever and wherever the run ran."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from megatron_cod.analysis.metrics import BITS, PARAMETERS, TRAIN_LOSS, VALID_LOSS, Metrics
from megatron_cod.comparison.runs import how_it_diverged
from megatron_cod.study.jobs import Job

_POINTS = 60
"""Of the training curve that is kept."""


@dataclass(frozen=True)
class Result:
    """One finished run. Losses in nats per token; ``loss`` is None where the run diverged."""

    shape: str
    arm: str
    rate: float
    seed: int
    diverged: str | None
    """How, or None."""
    loss: float | None
    """On the whole validation text, at the end."""
    bits_per_byte: float | None
    train_loss: float | None
    """Mean of the last 20 steps."""
    start_loss: float | None
    """Of the first step: at initialization."""
    parameters: int
    variance: dict[str, float]
    """Of the residual stream after each global layer, on the validation text."""
    curve: list[list[float]]
    """Steps and training losses: means over equal stretches of the run."""

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def result_of(job: Job, metrics: Metrics, diverged: str | None) -> Result:
    """The record of a run from its metrics. diverged: the run's message, or None."""
    how = diverged or how_it_diverged(metrics)
    losses = [loss for loss in metrics.series(TRAIN_LOSS)[1] if math.isfinite(loss)]
    loss, bits = metrics.last(VALID_LOSS), metrics.last(f"{BITS} validation")
    return Result(
        shape=job.shape.name,
        arm=job.arm,
        rate=job.rate,
        seed=job.seed,
        diverged=how,
        loss=None if how else loss,
        bits_per_byte=None if how else bits,
        train_loss=statistics.fmean(losses[-20:]) if losses and not how else None,
        start_loss=losses[0] if losses else None,
        parameters=int(metrics.last(PARAMETERS) or 0),
        variance={} if how else {f"{layer:03d}": value for layer, value in metrics.stream_variance().items()},
        curve=_thinned(*metrics.series(TRAIN_LOSS)),
    )


def _thinned(steps: list[int], losses: list[float]) -> list[list[float]]:
    span = max(1, -(-len(steps) // _POINTS))
    parts = [range(first, min(first + span, len(steps))) for first in range(0, len(steps), span)]
    means = [(steps[part[-1]], statistics.fmean(losses[place] for place in part)) for part in parts]
    return [[step, round(mean, 5)] for step, mean in means if math.isfinite(mean)]


def from_record(record: dict[str, Any]) -> Result:
    """What ``record`` made."""
    return Result(**record)
