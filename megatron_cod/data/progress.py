"""How far a run is: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 5.0


class _Bar(tqdm):
    # Its monitor is a thread, and workers are forked after the bar is drawn.
    monitor_interval = 0


class Progress:
    """Reports on `stream`. `total` is the size on disk of all inputs, in bytes."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total = total
        self._stream = stream or sys.stderr
        self._start = self._last = time.monotonic()
        self._bar: Any = None
        if self._stream.isatty():
            self._bar = _Bar(total=total, unit="B", unit_scale=True, file=self._stream)

    def update(self, position: int, documents: int, tokens: int, text_bytes: int) -> None:
        """`position`: bytes of the inputs read; the others: what has been written."""
        now = time.monotonic()
        seconds = max(now - self._start, 1e-6)
        speed = f"{text_bytes / seconds / 1e6:.1f} MB/s of text"
        if self._bar is not None:
            self._bar.set_postfix_str(f"{documents:,} documents, {tokens:,} tokens, {speed}", refresh=False)
            self._bar.update(position - self._bar.n)
        elif now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            done = position / max(self._total, 1)
            left = f"{seconds * (1 - done) / done:.0f} s left" if done else "time left unknown"
            print(
                f"{done:4.0%}  {documents:,} documents  {tokens:,} tokens  {speed}  {left}",
                file=self._stream,
                flush=True,
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
