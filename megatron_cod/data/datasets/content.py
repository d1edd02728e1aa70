"""What a dataset holds, as digests: what is kept beside data is bound to these, and not to a path that may hold others."""

from __future__ import annotations

import hashlib
import os
import shutil
from functools import lru_cache
from pathlib import Path

_WINDOWS, _WINDOW_BYTES = 64, 1 << 16


def index_digest(prefix: str | Path) -> str:
    """Of PREFIX.idx, read whole: the lengths of all documents and their order. The order of samples depends on nothing
    else that a dataset holds."""
    return _digest(f"{prefix}.idx", *_state(f"{prefix}.idx"))


def tokens_digest(path: str | Path) -> str:
    """Of a ``.bin``: its size, and evenly spaced windows of it, 4 MiB in all; a smaller file is read whole."""
    size = os.stat(path).st_size
    digest = hashlib.sha256(str(size).encode())
    places = range(0, size, _WINDOW_BYTES)
    if len(places) > _WINDOWS:
        places = range(0, size, -(-size // _WINDOWS))
    with open(path, "rb") as file:
        for place in places:
            file.seek(place)
            digest.update(file.read(_WINDOW_BYTES))
    return digest.hexdigest()


def content_digest(prefix: str | Path) -> str:
    """Of a dataset: ``index_digest`` and ``tokens_digest`` in one."""
    both = index_digest(prefix) + tokens_digest(f"{prefix}.bin")
    return hashlib.sha256(both.encode()).hexdigest()[:32]


def remove_indices(prefix: str | Path) -> None:
    """Remove what Megatron keeps in PREFIX/cache: it is made from the dataset of that name, which is replaced."""
    folder = Path(prefix) / "cache"
    for path in folder.glob("*_indices"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (folder, Path(prefix)):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _state(path: str) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ino


@lru_cache(maxsize=4096)
def _digest(path: str, *_state: int) -> str:
    """Of a whole file; once for train, validation and test of one dataset."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
