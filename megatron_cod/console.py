"""The console. If the output of a process goes to a file (``launch/rank_logs.py``), these lines go to both.

On a terminal a live view can take the console's part (``training/monitoring/live_panel.py``).
"""

from __future__ import annotations

import os
import sys
from typing import Protocol, TextIO

_out: TextIO | None = None
_err: TextIO | None = None


class View(Protocol):
    """What shows lines on a terminal in place of a plain stream."""

    def line(self, text: str) -> None:
        """Show a line of the log."""

    def status(self, text: str) -> None:
        """Show the progress of the run, in place of the one before."""


_view: View | None = None


def keep(out: TextIO, err: TextIO) -> None:
    """Use these streams as the console; ``sys.stdout`` and ``sys.stderr`` are redirected."""
    global _out, _err
    _out, _err = out, err


def terminal() -> TextIO | None:
    """The console, if it is a terminal that shows Unicode and this process prints everything else to a file."""
    if _out is None or not _out.isatty() or os.environ.get("TERM") == "dumb":
        return None
    return _out if (_out.encoding or "utf").lower().startswith("utf") else None


def show_live(view: View | None) -> None:
    """Give the console's lines to a view; None ends that."""
    global _view
    _view = view


def log_to_file(text: str) -> None:
    """Print only to the file, if there is one: another rank prints the line to the console."""
    if _out is not None:
        print(text, flush=True)


def print_line(text: str) -> None:
    """Print on standard output."""
    _print(text, _out, sys.stdout)


def print_status(text: str) -> None:
    """Show the progress of the run: a line, or in a live view."""
    view = _view
    if view is None:
        print_line(text)
    else:
        view.status(text)
        log_to_file(text)


def print_error(text: str) -> None:
    """Print on standard error, after earlier lines of standard output."""
    if _err is None:
        sys.stdout.flush()
    _print(text, _err, sys.stderr)


def _print(text: str, console: TextIO | None, stream: TextIO) -> None:
    if _view is not None:
        _view.line(text)
    elif console is not None:  # before the file, whose file system may not answer
        print(text, file=console, flush=True)
    print(text, file=stream, flush=True)


def log_rank0(text: str) -> None:
    """Print a line of the log, on rank 0."""
    if this_rank() == 0:
        print_line(text)


def this_rank() -> int:
    """This process's global rank, as the launcher set it; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))
