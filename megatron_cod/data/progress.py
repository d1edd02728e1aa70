"""How far a run is: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich import progress as rich_progress
from rich.console import Console

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_DRAWINGS = 0.1


class Progress:
    """Reports on `stream`. `total` is the size on disk of all inputs, in bytes."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total = total
        self._stream = stream or sys.stderr
        self._start = self._last = time.monotonic()
        self._bar: rich_progress.Progress | None = None
        if self._stream.isatty():
            # Drawn on update alone: its own refreshing is a thread, and workers are forked after this.
            self._bar = rich_progress.Progress(
                rich_progress.BarColumn(20),
                rich_progress.TaskProgressColumn(),
                rich_progress.TimeRemainingColumn(),
                rich_progress.TextColumn("{task.description}"),
                console=Console(file=self._stream),
                auto_refresh=False,
            )
            self._task = self._bar.add_task("", total=total)
            self._bar.start()

    def update(self, position: int, documents: int, tokens: int, text_bytes: int) -> None:
        """`position`: bytes of the inputs read; the others: what has been written."""
        now = time.monotonic()
        seconds = max(now - self._start, 1e-6)
        state = f"{documents:,} documents  {tokens:,} tokens  {text_bytes / seconds / 1e6:.1f} MB/s of text"
        if self._bar is not None:
            draw = now - self._last >= _SECONDS_BETWEEN_DRAWINGS
            self._bar.update(self._task, completed=position, description=state, refresh=draw)
            self._last = now if draw else self._last
        elif now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            done = position / max(self._total, 1)
            left = f"{seconds * (1 - done) / done:.0f} s left" if done else "time left unknown"
            print(f"{done:4.0%}  {state}  {left}", file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
