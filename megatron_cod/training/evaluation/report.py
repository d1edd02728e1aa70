"""What an evaluation found: a table, JSON, progress lines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_cod.analysis.metrics import perplexity
from megatron_cod.common.amounts import tokens_text
from megatron_cod.common.files import write_whole
from megatron_cod.common.lists import aligned
from megatron_cod.common.progress import Pace


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
    return aligned(cells)


def _cells(score: Score) -> tuple[str, ...]:
    bits = score.bits_per_byte
    return (
        *(score.name, f"{score.documents:,}", f"{score.tokens:,}", f"{score.loss:.4f}"),
        *(f"{perplexity(score.loss):.2f}", "" if bits is None else f"{bits:.4f}"),
    )


def write(path: str, facts: dict[str, Any], rows: Sequence[Score], total: Score) -> None:
    """The result as JSON, in one step: a reader sees all of it or none."""
    content = {**facts, "sets": [row.record() for row in rows], "total": total.record()}
    write_whole(path, json.dumps(content, indent=2) + "\n")


class ProgressLines:
    """A line of the log now and then: how much is done, how fast, how long the rest takes."""

    def __init__(self, total: int, emit: Callable[[str], None]) -> None:
        """total: tokens to predict."""
        self.pace, self._emit = Pace(total), emit

    def add(self, tokens: int) -> None:
        """So many more were predicted."""
        pace = self.pace
        pace.add(tokens)
        if pace.is_due() and pace.done < pace.total:
            done = f"{tokens_text(pace.done)} of {tokens_text(pace.total)} tokens"
            self._emit(f"evaluated {pace.share:4.0%} | {done} | {pace.rate():,.0f} tokens/s | ETA {pace.left()}")
