"""The console for the ranks that have something to say, a file for each of the others.

Rank 0 says how the run is set up and what goes wrong, the last rank has the losses and prints the progress, as in Megatron.
What the others print, Megatron's own warnings for the most part, goes to ``rank_00007.log`` and so on.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TextIO

from megatron_cod.training.faults.events import restarts, this_host

_console: TextIO | None = None
_file: Path | None = None


def folder_of(asked: str | None, save: str | None) -> Path | None:
    """Where the files are: ``--rank-log-dir``, else SAVE/logs; None for 'none', and where there is no ``--save``."""
    if asked is not None:
        return None if asked == "none" else Path(asked)
    return Path(save) / "logs" if save else None


def redirect(folder: Path | None, rank: int, world: int) -> None:
    """From here on, what this process and its children print goes to its file, unless its place is the console."""
    global _console, _file
    if folder is None or rank in (0, world - 1):
        return
    folder.mkdir(parents=True, exist_ok=True)
    _file = folder / f"rank_{rank:05d}.log"
    _console = os.fdopen(os.dup(2), "w")
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    print(f"---- {now} rank {rank} of {world} on {this_host()}, pid {os.getpid()}, restart {restarts()}", flush=True)


def speak(line: str) -> None:
    """Print a line of this rank on the console, and in its file where it has one."""
    sys.stdout.flush()
    print(line, file=sys.stderr, flush=True)
    if _console is not None:
        print(line, file=_console, flush=True)


def where() -> str:
    """How to find this rank's file, to end a line with; empty where it has none."""
    return f" (its log: {_file})" if _file else ""
