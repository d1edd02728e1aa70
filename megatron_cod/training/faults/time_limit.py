"""The end of the allotted time: save and stop in good time, by what steps and saves took so far.

Slurm's own warning (``--signal``) comes at a fixed moment, which a template has to guess. A run that knows the end of its
job needs no guess. It stops as on a signal: the step is finished, all ranks save together, the job is queued again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from megatron_cod.checkpoint.directory import iterations
from megatron_cod.common.numbers import number_or_nan
from megatron_cod.errors import UserError
from megatron_cod.training.loop.observers import Observer, Run

_SPARE_SECONDS = 30.0  # for the launcher, and a file system that is slower this time
_SAVE_SECONDS = 30.0  # of a save, before the first


def deadline(asked: str, now: float) -> float | None:
    """``--time-limit`` as seconds since the epoch: 'auto' is Slurm's end of the job where it is known and still to come,
    'none' no end, else minutes from now.

    Raises UserError for anything else.
    """
    if asked == "none":
        return None
    if asked == "auto":
        end = os.environ.get("SLURM_JOB_END_TIME", "")
        return float(end) if end.isdigit() and int(end) > now else None
    minutes = number_or_nan(asked)
    if not 0.0 < minutes < float("inf"):
        raise UserError(f"--time-limit {asked}: give auto, none, or minutes above 0")
    return now + 60.0 * minutes


def saving_seconds(save: str | None) -> float:
    """How long the newest checkpoint took, by the times of its files; 0 where there is none."""
    newest = list(iterations(save).values())[-1:] if save else []
    times = [path.stat().st_mtime for folder in newest for path in folder.iterdir()]
    return max(times) - min(times) if times else 0.0


class TimeLimit(Observer):
    """Raises SIGTERM in this process once, when what is left is no more than a step and a save may need. For rank 0."""

    def __init__(
        self,
        end: float,
        save: str | None,
        now: Callable[[], float] = time.time,
        on_reached: Callable[[], None] = lambda: None,
    ) -> None:
        """end: seconds since the epoch. save: ``--save``, where earlier checkpoints show how long one takes.
        on_reached: called just before the signal."""
        self._end, self._now, self._on_reached = end, now, on_reached
        self._save_seconds = max(saving_seconds(save), _SAVE_SECONDS) if save else 0.0
        self._most = (end - now()) / 2  # a job too short for all this still trains half of its time
        self._longest = 0.0  # seconds from one step's begin to the next one's, saves and all
        self._last: float | None = None
        self.reached = False

    @classmethod
    def of(cls, run: Run) -> TimeLimit | None:
        """On rank 0, where the end of the job is known."""
        end = deadline(run.args.time_limit, time.time()) if run.args.rank == 0 else None

        def note() -> None:
            run.sigterm = "time limit"

        return None if end is None else cls(end, run.args.save, on_reached=note)

    def needed(self) -> float:
        """Seconds that this step and a save may take, with as much again for safety."""
        return min(2.0 * (self._longest + self._save_seconds) + _SPARE_SECONDS, self._most)

    def step_begins(self) -> None:
        """Is there time for this step, and a save?"""
        now = self._now()
        if self._last is not None:
            self._longest = max(self._longest, now - self._last)
        self._last = now
        if not self.reached and self._end - now <= self.needed():
            self.reached = True
            self._on_reached()
            signal.raise_signal(signal.SIGTERM)
