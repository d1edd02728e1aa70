"""Loss spikes: a training loss far above those of the steps before, and not because the loss is noisy."""

from __future__ import annotations

import math
import statistics
from collections import deque

WINDOW = 128
"""Steps a loss is compared with."""
_FEWEST = 32
_NORMAL = 1.4826  # median absolute deviation -> standard deviation, for a normal distribution


class LossSpikes:
    """Tells a spike: more than ``factor`` robust standard deviations above the median of the last losses.

    The deviation is the median absolute one, so that a spike does not widen the band for the next; it counts as at least
    1% of the median, for losses that hardly move. A spike is told once, at its first step.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._in_spike = False

    def see(self, loss: float) -> tuple[float, float] | None:
        """Take the next step's loss; at the first step of a spike, the median and the threshold that it passed."""
        if not math.isfinite(loss):
            return None
        told = None
        if len(self._losses) >= _FEWEST:
            median = statistics.median(self._losses)
            spread = _NORMAL * statistics.median(abs(one - median) for one in self._losses)
            threshold = median + self._factor * max(spread, 0.01 * median)
            above = loss > threshold
            told = (median, threshold) if above and not self._in_spike else None
            self._in_spike = above
        self._losses.append(loss)
        return told
