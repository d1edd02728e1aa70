"""How much of the time trains, under failures: the best interval between checkpoints and the goodput at it.

J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future Generation Computer
Systems 22 (2006): failures come at any time at a constant rate, also while a checkpoint is saved or the job restarts.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Failures:
    """A job's failures and what they cost, in seconds."""

    mean_between: float
    """Of the whole job: that of one GPU over the number of GPUs."""
    save: float
    """In which training waits for a checkpoint."""
    restart: float
    """From a failure until training resumes from the last checkpoint."""


def young_interval(failures: Failures) -> float:
    """Seconds of training between two checkpoints, to first order: sqrt(2 d M) (Young 1974)."""
    return math.sqrt(2 * failures.save * failures.mean_between)


def daly_interval(failures: Failures) -> float:
    """The same to higher order (Daly 2006, equation 37); the mean time between failures where saving takes longer."""
    ratio = failures.save / (2 * failures.mean_between)
    if ratio >= 1:
        return failures.mean_between
    return young_interval(failures) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - failures.save


def goodput(failures: Failures, interval: float) -> float:
    """Share of the time that trains and is not lost, with a checkpoint each ``interval`` seconds (Daly, equation 20)."""
    mean = failures.mean_between
    lost = (interval + failures.save) / mean
    if lost + failures.restart / mean > 700:  # exp would overflow: nothing is ever finished
        return 0.0
    return interval / (mean * math.exp(failures.restart / mean) * math.expm1(lost))


def goodput_lines(failures: Failures, step: float) -> list[str]:
    """The best interval, in steps of ``step`` seconds, and what is left of the time."""
    steps = max(1, round(daly_interval(failures) / step))
    share = goodput(failures, steps * step)
    return [
        f"failures: one in {failures.mean_between / 3600:,.1f} hours of the job; saving takes {failures.save:g} s, "
        f"a restart {failures.restart:g} s",
        f"  best checkpoint interval: {steps:,} steps ({steps * step / 60:,.1f} minutes); goodput {share:.1%} of the time",
    ]
