"""A log file per rank with all its output; the console gets the important lines (``console.py``).

Megatron prints some 800 lines of arguments on rank 0 and a long line a step on the last rank, and every rank its warnings:
all that goes to ``rank_00000.log`` and so on, with the lines of the console among it.
"""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path
from types import TracebackType

from megatron_cod import console
from megatron_cod.errors import Phase, ending
from megatron_cod.launch.scheduler import restarts, this_host

_file: Path | None = None


class _Log(io.TextIOWrapper):
    """A rank's file as a stream. On a full disk a line of it is lost, and the run is not."""

    warned = False

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            return self._lost(error, len(text))

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._lost(error, 0)

    def _lost(self, error: OSError, length: int) -> int:
        if not _Log.warned:
            _Log.warned = True
            console.print_error(f"WARNING: {_file} cannot be written ({error.strerror or error}); lines of it are lost")
        return length


def folder_of(asked: str | None, save: str | None) -> Path | None:
    """Where the files are: ``--rank-log-dir``, else SAVE/logs; None for 'none', and where there is no ``--save``."""
    if asked is not None:
        return None if asked == "none" else Path(asked)
    return Path(save) / "logs" if save else None


def redirect(folder: Path | None, rank: int, world: int) -> None:
    """From here on, what this process and its children print goes to its file; without a folder to the console."""
    global _file
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    _file = folder / f"rank_{rank:05d}.log"
    sys.stdout.flush()
    sys.stderr.flush()
    console.keep(*(os.fdopen(os.dup(stream), "w") for stream in (1, 2)))
    descriptor = os.open(_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    sys.stdout, sys.stderr = (
        _Log(open(stream, "wb", closefd=False), "utf-8", "backslashreplace", line_buffering=True)  # noqa: SIM115
        for stream in (1, 2)
    )
    report_failures()
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    print(f"---- {now} rank {rank} of {world} on {this_host()}, pid {os.getpid()}, restart {restarts()}", flush=True)


def is_redirected() -> bool:
    """Whether what this process prints goes to a file of its own."""
    return _file is not None


def report_failures() -> None:
    """Report an exception that ends this process on the console too; its traceback is in the file."""
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The traceback to the file, a line to the console."""
    sys.__excepthook__(kind, error, trace)
    found = ending(error, Phase.TRAINING)
    text = found.line if found.is_fault else f"{kind.__name__}: {found.line[:300]}"
    where = f"its log: {_file}" if _file else "its traceback is above"
    console.print_error(f"rank {os.environ.get('RANK', '0')} failed: {text} ({where})")
