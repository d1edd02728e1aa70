"""Progress: how much is done, how fast, how long the rest takes; a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as RichProgress

from megatron_cod.common.amounts import format_duration

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_DRAWINGS = 0.1


class Pace:
    """Counts what is done of ``total``, of which ``before`` was done by an earlier run."""

    def __init__(self, total: int, before: int = 0) -> None:
        self.total, self.done = max(total, 1), before
        self._before = before
        self._start = self._last = time.monotonic()

    def add(self, count: int) -> None:
        """So much more is done."""
        self.done += count

    def skip(self, count: int) -> None:
        """So much was done by an earlier run."""
        self._before += count
        self.done += count

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.done / self.total

    def seconds(self) -> float:
        """Since the beginning."""
        return max(time.monotonic() - self._start, 1e-9)

    def rate(self) -> float:
        """What this run has done a second."""
        return (self.done - self._before) / self.seconds()

    def left(self) -> str | None:
        """The time that the rest takes; None where nothing is done yet."""
        rate = self.rate()
        return format_duration((self.total - self.done) / rate) if rate else None

    def is_due(self, interval: float = _SECONDS_BETWEEN_LINES) -> bool:
        """Whether so many seconds are over since the last report; if so, this is a report."""
        now = time.monotonic()
        if now - self._last < interval:
            return False
        self._last = now
        return True


class Progress:
    """A bar, or lines, of what is done. It has no thread: workers may be forked after it was made."""

    def __init__(self, pace: Pace, describe: Callable[[Pace], str], stream: TextIO | None = None) -> None:
        """describe: what is beside the share that is done and the time left. stream: standard error by default."""
        self.pace, self._describe = pace, describe
        self._stream = stream or sys.stderr
        self._bar: RichProgress | None = None
        if self._stream.isatty():
            columns = BarColumn(20), TaskProgressColumn(), TextColumn("{task.description}")
            self._bar = RichProgress(*columns, console=Console(file=self._stream), auto_refresh=False)
            self._task = self._bar.add_task("", total=pace.total)
            self._bar.start()

    def add(self, count: int) -> None:
        """So much more is done; report it, if it is time."""
        self.pace.add(count)
        if self.pace.is_due(_SECONDS_BETWEEN_LINES if self._bar is None else _SECONDS_BETWEEN_DRAWINGS):
            self._show()

    def _show(self) -> None:
        left = self.pace.left()
        text = f"{self._describe(self.pace)}  {f'{left} left' if left else 'time left unknown'}"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.pace.done, description=text, refresh=True)
        else:
            print(f"{self.pace.share:4.0%}  {text}", file=self._stream, flush=True)

    def close(self) -> None:
        """End the bar, at what was done last."""
        if self._bar is not None:
            self._show()
            self._bar.stop()


def progress_of_bytes(total: int, stream: TextIO | None = None) -> Progress:
    """Of ``total`` bytes to write."""
    return Progress(Pace(total), lambda pace: f"{pace.rate() / 1e6:.0f} MB/s", stream)
