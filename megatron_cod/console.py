"""The console, for what a user is to see. Where what a process prints goes to a file (``launch/rank_logs.py``), these
lines go to both."""

from __future__ import annotations

import os
import sys
from typing import TextIO

_out: TextIO | None = None
_err: TextIO | None = None


def keep(out: TextIO, err: TextIO) -> None:
    """From here on the console is these streams; ``sys.stdout`` and ``sys.stderr`` lead elsewhere."""
    global _out, _err
    _out, _err = out, err


def note(text: str) -> None:
    """Print in the file alone, where there is one: the console has it from another rank."""
    if _out is not None:
        print(text, flush=True)


def show(text: str) -> None:
    """Print on standard output."""
    _print(text, _out, sys.stdout)


def speak(text: str) -> None:
    """Print on standard error, after what was shown before."""
    if _err is None:
        sys.stdout.flush()
    _print(text, _err, sys.stderr)


def _print(text: str, console: TextIO | None, stream: TextIO) -> None:
    if console is not None:  # before the file, whose file system may not answer
        print(text, file=console, flush=True)
    print(text, file=stream, flush=True)


def say(text: str) -> None:
    """Print a line of the log, on rank 0."""
    if this_rank() == 0:
        show(text)


def this_rank() -> int:
    """This process's global rank, as the launcher set it; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))
