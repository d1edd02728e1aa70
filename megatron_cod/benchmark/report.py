"""A comparison as text, Markdown and JSON."""

import json
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from megatron_cod.benchmark.timing import Lap, Laps, Ratio, ratio
from megatron_cod.common.amounts import GIB
from megatron_cod.common.lists import aligned

PARTS: dict[str, Callable[[Lap], float]] = {
    "step": lambda lap: lap.total,
    "forward+backward": lambda lap: lap.forward_backward,
    "optimizer": lambda lap: lap.optimizer,
}


@dataclass(frozen=True)
class Row:
    """One contestant's time for one part of the step."""

    name: str
    part: str
    median_ms: float
    tokens_per_s: float
    ratio: Ratio
    """Against the reference's same part."""
    mfu: float | None = None
    """Share of the device's peak, 0 to 1; None where that is not known."""
    peak_bytes: int | None = None
    """Device memory; None where it is not measured."""


@dataclass
class Report:
    """What one benchmark measured; ``facts``: of what; ``notes``: what was checked before timing."""

    title: str
    reference: str
    facts: dict[str, Any]
    rows: list[Row]
    laps: Laps
    notes: list[str] = field(default_factory=list)
    appendix: str = ""
    """Printed below the table on a terminal only."""

    def _cells(self) -> list[tuple[str, ...]]:
        head = ("", "part", "median ms", "tokens/s", f"ratio to {self.reference}", "95% interval", "MFU", "peak GiB")
        body = [
            (
                row.name,
                row.part,
                f"{row.median_ms:.2f}",
                f"{row.tokens_per_s:.0f}" if row.part == "step" else "",
                f"{row.ratio.median:.4f}",
                f"{row.ratio.low:.4f} .. {row.ratio.high:.4f}",
                "" if row.mfu is None else f"{100 * row.mfu:.1f}%",
                "" if row.peak_bytes is None else f"{row.peak_bytes / GIB:.2f}",
            )
            for row in self.rows
        ]
        table = [head, *body]
        # Columns that nothing fills are omitted.
        filled = [place for place in range(len(head)) if place < 2 or any(row[place] for row in body)]
        return [tuple(row[place] for place in filled) for row in table]

    def _facts_line(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.facts.items())

    def text(self) -> str:
        """The table for a terminal."""
        below = ["", self.appendix] if self.appendix else []
        return "\n".join([self.title, self._facts_line(), *self.notes, "", *aligned(self._cells(), left=2), *below])

    def markdown(self) -> str:
        """The table for a document."""
        head, *body = self._cells()
        lines = [" | ".join(row) for row in (head, ("---",) * 2 + ("---:",) * (len(head) - 2), *body)]
        return "\n".join(
            [f"**{self.title}** ({self._facts_line()})", "", *(f"| {line} |" for line in lines), "", *self.notes, ""]
        )

    def json(self) -> str:
        """Everything, with every single step's time, so that another statistic can be computed later."""
        content = {
            "title": self.title,
            "reference": self.reference,
            "facts": self.facts,
            "notes": self.notes,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "megatron-core", "transformers")},
            },
            "rows": [asdict(row) for row in self.rows],
            "laps": {name: [asdict(lap) for lap in laps] for name, laps in self.laps.items()},
        }
        return json.dumps(content, indent=1) + "\n"

    def write(self, json_path: str | None, markdown_path: str | None) -> None:
        """Write the requested files; OSError when one cannot be written."""
        if json_path:
            Path(json_path).write_text(self.json())
        if markdown_path:
            Path(markdown_path).write_text(self.markdown())


def rows_of(laps: Laps, reference: str, tokens: int, parts: Sequence[str] = ("step",)) -> list[Row]:
    """Rows of every contestant, the reference first. tokens: in one step."""
    names = [reference, *(name for name in laps if name != reference)]
    rows = []
    for part in parts:
        times = {name: [PARTS[part](lap) for lap in laps[name]] for name in names}
        for name in names:
            median = statistics.median(times[name])
            rows.append(Row(name, part, 1e3 * median, tokens / median, ratio(times[name], times[reference])))
    return rows
