"""Progress of a run: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import TextIO

from rich import progress as rich_progress
from rich.console import Console

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_DRAWINGS = 0.1


class Progress:
    """Reports on `stream` what is done of `total` bytes, of which `before` were done in an earlier run."""

    def __init__(self, total: int, before: int = 0, stream: TextIO | None = None) -> None:
        self._total, self._before = max(total, 1), before
        self._stream = stream or sys.stderr
        self._start = self._last = time.monotonic()
        self._latest = (0, 0, 0, 0)
        self._bar: rich_progress.Progress | None = None
        if self._stream.isatty():
            # Drawn on update alone: its own refreshing is a thread, and workers are forked after this.
            self._bar = rich_progress.Progress(
                rich_progress.BarColumn(20),
                rich_progress.TaskProgressColumn(),
                rich_progress.TextColumn("{task.description}"),
                console=Console(file=self._stream),
                auto_refresh=False,
            )
            self._task = self._bar.add_task("", total=self._total)
            self._bar.start()

    def update(self, done: int, documents: int, tokens: int, text_bytes: int) -> None:
        """`done`: bytes of the inputs read by this run; the others: what came of them."""
        self._latest = (done, documents, tokens, text_bytes)
        now = time.monotonic()
        if now - self._last >= (_SECONDS_BETWEEN_LINES if self._bar is None else _SECONDS_BETWEEN_DRAWINGS):
            self._last = now
            self._show(now - self._start)

    def _show(self, seconds: float) -> None:
        position = self._before + self._latest[0]
        state = self._state(max(seconds, 1e-6), position, *self._latest)
        if self._bar is not None:
            self._bar.update(self._task, completed=position, description=state, refresh=True)
        else:
            print(f"{position / self._total:4.0%}  {state}", file=self._stream, flush=True)

    def _state(self, seconds: float, position: int, done: int, documents: int, tokens: int, text_bytes: int) -> str:
        left = "time left unknown"
        if done:
            left = f"{timedelta(seconds=round(seconds * (self._total - position) / done))} left"
        return (
            f"{documents:,} documents  {tokens:,} tokens  {text_bytes / seconds / 1e6:.1f} MB/s  "
            f"{tokens / seconds:,.0f} tokens/s  {left}"
        )

    def close(self) -> None:
        if self._bar is not None:
            self._show(time.monotonic() - self._start)
            self._bar.stop()
