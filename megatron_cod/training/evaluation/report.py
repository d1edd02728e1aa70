"""What an evaluation found: a table, JSON, progress lines."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cod.analysis.metrics import perplexity
from megatron_cod.training.monitoring.summary import format_duration
from megatron_cod.training.monitoring.throughput import tokens_text

_SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True)
class Score:
    """One row of the table."""

    name: str
    documents: int
    tokens: int
    """Predicted ones."""
    nats: float
    """Their loss, summed."""
    text_bytes: int | None
    not_finite: int = 0
    """Windows whose loss is NaN or infinite."""

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float | None:
        """All bits over all bytes of the text."""
        return self.nats / math.log(2) / self.text_bytes if self.text_bytes else None

    def record(self) -> dict[str, Any]:
        """For JSON, which knows no NaN."""
        values = {
            "loss": self.loss,
            "perplexity": perplexity(self.loss),
            "bits_per_byte": self.bits_per_byte,
        }
        return {
            "name": self.name,
            "documents": self.documents,
            "tokens": self.tokens,
            "text_bytes": self.text_bytes,
            **{name: value if value is not None and math.isfinite(value) else None for name, value in values.items()},
            "windows_not_finite": self.not_finite,
        }


def summed(name: str, scores: Sequence[Score]) -> Score:
    """Several sets as one: the mean is over all of their tokens."""
    sizes = [score.text_bytes for score in scores]
    return Score(
        name,
        sum(score.documents for score in scores),
        sum(score.tokens for score in scores),
        sum(score.nats for score in scores),
        None if None in sizes else sum(size for size in sizes if size),
        sum(score.not_finite for score in scores),
    )


def with_sums(scores: Sequence[Score], groups: Sequence[str]) -> tuple[list[Score], Score]:
    """(each score, and behind the domains of an input their sum; the total). groups: which input each score is of."""
    rows = []
    for group in dict.fromkeys(groups):
        own = [score for score, of in zip(scores, groups, strict=True) if of == group]
        rows += own
        if len(own) > 1:
            rows.append(summed(group, own))
    return rows, summed("total", scores)


def table(rows: Sequence[Score], total: Score) -> list[str]:
    """Aligned lines; the total only where there is more than one row."""
    head = ("data", "documents", "tokens", "loss", "perplexity", "bits/byte")
    cells = [head, *(_cells(row) for row in (*rows, *([total] if len(rows) > 1 else [])))]
    widths = [max(len(line[n]) for line in cells) for n in range(len(head))]
    return [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(size) for cell, size in zip(line[1:], widths[1:], strict=True))]
        )
        for line in cells
    ]


def _cells(score: Score) -> tuple[str, ...]:
    bits = score.bits_per_byte
    return (
        *(score.name, f"{score.documents:,}", f"{score.tokens:,}", f"{score.loss:.4f}"),
        *(f"{perplexity(score.loss):.2f}", "" if bits is None else f"{bits:.4f}"),
    )


def write(path: str, facts: dict[str, Any], rows: Sequence[Score], total: Score) -> None:
    """The result as JSON, in one step: a reader sees all of it or none."""
    content = {**facts, "sets": [row.record() for row in rows], "total": total.record()}
    part = Path(f"{path}.part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(path)


class Progress:
    """A line now and then: how much is done, how fast, how long it will take."""

    def __init__(self, total: int, emit: Callable[[str], None]) -> None:
        """total: tokens to predict."""
        self._total, self._emit, self._done = total, emit, 0
        self._begun = self._described = time.monotonic()

    def add(self, tokens: int) -> None:
        """So many more were predicted."""
        self._done += tokens
        now = time.monotonic()
        if now - self._described >= _SECONDS_BETWEEN_LINES and self._done < self._total:
            self._described = now
            share = self._done / self._total
            left = (now - self._begun) * (1 - share) / share
            done = f"{tokens_text(self._done)} of {tokens_text(self._total)} tokens"
            rate, eta = f"{self.rate():,.0f} tokens/s", format_duration(left)
            self._emit(f"evaluated {share:4.0%} | {done} | {rate} | ETA {eta}")

    def rate(self) -> float:
        """Predicted tokens a second so far."""
        return self._done / max(time.monotonic() - self._begun, 1e-9)

    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._begun
