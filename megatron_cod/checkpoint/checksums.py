"""Bytes of a checkpoint that have changed since they were written (``--verify-checkpoint``).

torch writes every piece of a checkpoint as a zip archive with a CRC-32 of each member, and does not check it when it
reads. Nothing has to be written for this: checkpoints of stock Megatron can be checked too.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# File systems of clusters give more to several readers; CRC-32 runs without Python's lock.
_THREADS = 16


class _Part(io.RawIOBase):
    """Some bytes of a file, as a file."""

    def __init__(self, path: Path, offset: int, length: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._offset, self._length, self._place = offset, length, 0

    def close(self) -> None:
        self._file.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._length}[whence]
        self._place = start + place
        return self._place

    def readinto(self, target: Any) -> int:
        size = max(0, min(len(target), self._length - self._place))
        self._file.seek(self._offset + self._place)
        read = self._file.readinto(memoryview(target)[:size]) or 0
        self._place += read
        return read


def changed(folder: Path, stored: Mapping[Any, Any]) -> str | None:
    """What is wrong with the bytes of a torch_dist checkpoint, on one line; None where they are as they were written.

    stored: ``storage_data`` of its index. All of it is read; a core does about 2 GB/s.
    """
    pieces = [(folder / piece.relative_path, piece.offset, piece.length) for piece in stored.values()]
    pieces += [(path, 0, path.stat().st_size) for path in sorted(folder.glob("*.pt"))]
    with ThreadPoolExecutor(_THREADS) as threads:
        return next(filter(None, threads.map(lambda piece: _changed_piece(*piece), sorted(pieces))), None)


def _changed_piece(path: Path, offset: int, length: int) -> str | None:
    where = f"{path.name} holds bytes that have changed since they were written, in the {length} from {offset} on"
    with _Part(path, offset, length) as part:
        try:
            with zipfile.ZipFile(io.BufferedReader(part, 1 << 20)) as archive:
                return where if not archive.namelist() or archive.testzip() else None
        except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError, ValueError, OverflowError):
            return where  # they were the archive's own
