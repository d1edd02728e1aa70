"""Progress of a preprocessing run: documents, tokens and text beside the share of the inputs that is read."""

from __future__ import annotations

from typing import TextIO

from megatron_cod.common.progress import Pace, Progress


class PreprocessingProgress:
    """Reports on `stream` what is done of `total` bytes, of which `before` were done in an earlier run."""

    def __init__(self, total: int, before: int = 0, stream: TextIO | None = None) -> None:
        self._done, self._latest = 0, (0, 0, 0)
        self._progress = Progress(Pace(total, before), self._describe, stream)

    def update(self, done: int, documents: int, tokens: int, text_bytes: int) -> None:
        """`done`: bytes of the inputs read by this run; the others: what came of them."""
        self._latest = (documents, tokens, text_bytes)
        self._progress.add(done - self._done)
        self._done = done

    def _describe(self, pace: Pace) -> str:
        documents, tokens, text_bytes = self._latest
        seconds = pace.seconds()
        return (
            f"{documents:,} documents  {tokens:,} tokens  {text_bytes / seconds / 1e6:.1f} MB/s  "
            f"{tokens / seconds:,.0f} tokens/s"
        )

    def close(self) -> None:
        """End the bar."""
        self._progress.close()
