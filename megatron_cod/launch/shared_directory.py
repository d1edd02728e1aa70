"""Whether a directory is the same one on several machines: each writes a mark, and waits for those of the others."""

import os
import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_OLD_SECONDS = 3600.0


def leave_mark(directory: str | Path) -> Path:
    """Write a file that no other process has written. OSError where the directory cannot be written.

    Marks of this machine that a killed process left there go.
    """
    start = f".mark-{socket.gethostname()}-"
    mark = Path(directory) / f"{start}{os.getpid()}-{secrets.token_hex(4)}"
    mark.write_text(mark.name)
    for old in Path(directory).glob(f"{start}*"):
        with suppress(FileNotFoundError):
            if mark.stat().st_mtime - old.stat().st_mtime > _OLD_SECONDS:
                old.unlink()
    return mark


def not_seen(directory: str | Path, names: Sequence[str], seconds: float) -> list[str]:
    """Of marks by these names, those that cannot be read within so many seconds.

    By name, not by listing: a network file system may answer for a listing from its cache, for a new name it must ask.
    """
    deadline = time.monotonic() + seconds
    pending = list(names)
    while True:
        pending = [name for name in pending if not _reads(Path(directory) / name)]
        if not pending or time.monotonic() > deadline:
            return pending
        time.sleep(0.1)


def _reads(mark: Path) -> bool:
    try:
        return mark.read_text() == mark.name
    except OSError:
        return False
