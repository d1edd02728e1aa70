"""Loss spikes: a training loss far above those of the steps before, and not because the loss is noisy."""

from __future__ import annotations

import math
import statistics
from collections import deque
from itertools import pairwise

from megatron_cod.checkpoint.events import Events
from megatron_cod.training.loop.observers import Observer, Run

WINDOW = 128
"""Steps from which the noise of the loss is measured."""
_LEVEL = 8  # the last steps, which show where it is
_FEWEST = 32
_NORMAL = 1.4826  # median absolute deviation -> standard deviation, for a normal distribution


class LossSpikes:
    """Detects a spike: a loss more than ``factor`` standard deviations of its noise above the median of the last eight.

    The noise is that of the differences from step to step, by their median absolute deviation: neither the fall of the loss
    nor an earlier spike widens the band. It is at least 1% of the loss, for losses that hardly move. A spike is reported
    once, at its first step.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._losses: deque[float] = deque(maxlen=WINDOW + 1)
        self._in_spike = False

    def see(self, loss: float) -> tuple[float, float] | None:
        """Take the next step's loss; at the first step of a spike, the usual loss and the threshold that it passed."""
        if not math.isfinite(loss):
            return None
        reported = None
        if len(self._losses) >= _FEWEST:
            usual = statistics.median(list(self._losses)[-_LEVEL:])
            changes = [after - before for before, after in pairwise(self._losses)]
            middle = statistics.median(changes)
            noise = _NORMAL * statistics.median(abs(one - middle) for one in changes) / math.sqrt(2.0)
            threshold = usual + self._factor * max(noise, 0.01 * usual)
            above = loss > threshold
            reported = (usual, threshold) if above and not self._in_spike else None
            self._in_spike = above
        self._losses.append(loss)
        return reported


class SpikeWarnings(Observer):
    """A line and an event for each spike, on the rank that has the losses."""

    def __init__(self, factor: float, events: Events) -> None:
        self._spikes, self._events = LossSpikes(factor), events

    @classmethod
    def of(cls, run: Run) -> SpikeWarnings | None:
        """Where ``--loss-spike-factor`` is not 0."""
        factor = run.args.loss_spike_factor
        return cls(factor, run.events) if factor else None

    def loss(self, step: int, loss: float) -> str | None:
        spike = self._spikes.see(loss)
        if spike is None:
            return None
        usual, threshold = spike
        self._events.add_here("loss spike", step=step, loss=loss, usual=usual, threshold=threshold)
        return (
            f"WARNING: loss spike at step {step}: {loss:.4f}, where {usual:.4f} is usual; should it stay, "
            f"--rewind-to an earlier checkpoint with --rewind-skip passes over this data"
        )
