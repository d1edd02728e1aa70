"""Progress of a conversion: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich import progress as rich_progress
from rich.console import Console

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Counts bytes written, of ``total``."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total, self._done, self._skipped = max(total, 1), 0, 0
        self._stream = stream or sys.stderr
        self._start = self._last = time.monotonic()
        self._bar: rich_progress.Progress | None = None
        if self._stream.isatty():
            self._bar = rich_progress.Progress(
                rich_progress.BarColumn(30),
                rich_progress.TaskProgressColumn(),
                rich_progress.TransferSpeedColumn(),
                rich_progress.TimeRemainingColumn(),
                console=Console(file=self._stream),
                transient=True,
            )
            self._task = self._bar.add_task("", total=total)
            self._bar.start()

    def skip(self, count: int) -> None:
        """Bytes that an interrupted run had written already."""
        self._skipped += count
        self.add(count)

    def add(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            speed = max(self._done - self._skipped, 1) / max(now - self._start, 1e-6)
            left = (self._total - self._done) / speed
            share = self._done / self._total
            print(f"{share:4.0%}  {speed / 1e6:.0f} MB/s  {left:.0f} s left", file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
