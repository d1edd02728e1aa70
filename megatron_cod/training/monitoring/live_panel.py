"""On a terminal: a panel below the log that shows the step, the loss and the time left, instead of a line each step.

Where rank 0's console is no terminal, or ranks have no log files (Megatron's output would run through the panel), there are
plain lines.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from megatron_cod import console

_BARS = "".join(map(chr, range(0x2581, 0x2589)))
"""Blocks of one to eight eighths."""
_MOST_LOSSES = 400


def sparkline(values: list[float], width: int) -> str:
    """The last values as a row of at most ``width`` bars, each the mean of as many, between the least and the greatest."""
    each = max(1, -(-len(values) // width))
    means = [sum(part) / len(part) for part in (values[i : i + each] for i in range(0, len(values), each))]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in means)


class LivePanel:
    """The view of ``console.show_live``."""

    def __init__(self, stream: TextIO, title: str) -> None:
        self._title = title
        self._losses: deque[float] = deque(maxlen=_MOST_LOSSES)
        self._console = Console(file=stream, highlight=False)
        # A process that is killed could not show a hidden cursor again.
        self._console.show_cursor = lambda show=True: False  # type: ignore[method-assign]
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._live.start()

    def line(self, text: str) -> None:
        """Print a line above the panel."""
        self._console.print(Text(text), soft_wrap=True)

    def status(self, text: str) -> None:
        """Show a step: the progress line of ``MetricsWriter``."""
        head, *fields = text.split(" | ")
        done, total = (int(number) for number in re.findall(r"\d+", head))
        loss = re.match(r"loss (\S+)", fields[0]) if fields else None
        if loss:
            self._losses.append(float(loss[1]))
        self._live.update(self._panel(done, total, fields), refresh=True)

    def _panel(self, done: int, total: int, fields: list[str]) -> Panel:
        left = [field for field in fields if field.startswith("ETA")]
        progress = Table.grid(padding=(0, 2), expand=True)
        progress.add_column(ratio=1)
        progress.add_row(ProgressBar(total, done), f"step {done:,} of {total:,}", f"{done / max(total, 1):.0%}", *left)
        values = Text("   ".join(field for field in fields if field not in left))
        losses = [loss for loss in self._losses if math.isfinite(loss)]
        width = max(10, min(60, self._console.width - 30))
        curve = Text(
            f"{max(losses):.4f} {sparkline(losses, width)} {min(losses):.4f}" if len(losses) > 1 else "", "cyan"
        )
        return Panel(Group(progress, values, curve), title=self._title, title_align="left", border_style="dim")

    def stop(self) -> None:
        """Remove the panel; what was printed above it stays."""
        self._live.stop()


@contextmanager
def live_panel(title: str) -> Iterator[None]:
    """Show a panel, where this process's console is a terminal with the ranks' output in files."""
    terminal = console.terminal()
    if terminal is None:
        yield
        return
    panel = LivePanel(terminal, title)
    console.show_live(panel)
    try:
        yield
    finally:
        console.show_live(None)
        panel.stop()
