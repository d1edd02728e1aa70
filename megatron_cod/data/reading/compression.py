"""Open a file that may be compressed (gzip, zstd, xz, bzip2), recognized by its content, not its name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron_cod.errors import UserError

SUFFIXES = (".gz", ".zst", ".xz", ".bz2")
"""That a compressed file's name has behind the one of its format."""

_GZIP, _ZSTD, _XZ, _BZIP2 = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"BZh"
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")
"""What follows ``BZh`` and a digit: a first block, or the end of an empty file. Text may begin with ``BZh`` as well."""
_NOT_READ = {
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a rar archive",
    b"\x04\x22\x4d\x18": "compressed with lz4",
    b"\xff\x06\x00\x00sNaPp": "compressed with snappy",
}
_TAR_AT, _TAR = 257, b"ustar"
_MAGIC_BYTES = 10
_READ_BYTES = 1 << 20
# Of compressed bytes: what they expand to is held at once, and zeros expand ten thousandfold.
_ZSTD_BYTES = 1 << 15


@dataclass(frozen=True)
class InputStream:
    """The uncompressed content, and how many bytes of the file on disk have been read so far."""

    content: BinaryIO
    position: Callable[[], int]


def is_compressed(path: Path) -> bool:
    """Whether the content begins as a compressed file; the name does not matter."""
    with path.open("rb") as raw:
        return _compression(raw.read(_MAGIC_BYTES)) is not None


def _compression(magic: bytes) -> str | None:
    if magic[:2] == _GZIP:
        return "gzip"
    if magic[:4] == _ZSTD or (magic[1:4] == b"\x2a\x4d\x18" and magic[0] >> 4 == 5):
        return "zstd"
    if magic[:6] == _XZ:
        return "xz"
    if magic[:3] == _BZIP2 and magic[3:4].isdigit() and magic[4:] in _BZIP2_BLOCKS:
        return "bzip2"
    return None


@contextmanager
def open_input(path: Path) -> Iterator[InputStream]:
    """Open a plain or compressed file for reading.

    Raises UserError naming the file for archives and for compressed data that is damaged or ends early; where none of
    it is left, the suffix decides.
    """
    with path.open("rb", buffering=_READ_BYTES) as raw:
        magic = raw.read(_MAGIC_BYTES)
        compression = _compression(magic)
        named = path.suffix.lower() in SUFFIXES
        if compression is None and named and any(known.startswith(magic) for known in (_GZIP, _ZSTD, _XZ, _BZIP2)):
            raise UserError(f"{path}: damaged or cut compressed file ({len(magic)} bytes)")
        _refuse_archives(path, magic)
        raw.seek(0)
        content, damaged = _decompressed(path, raw, compression)
        try:
            _refuse_tar(path, content)
            yield InputStream(content, raw.tell)
        except damaged as error:
            raise UserError(f"{path}: damaged or cut compressed file ({error})") from error


def _decompressed(path: Path, raw: BinaryIO, compression: str | None) -> tuple[Any, tuple[type[BaseException], ...]]:
    """The content, and the exceptions of a damaged file."""
    if compression == "gzip":
        return gzip.GzipFile(fileobj=raw), (EOFError, zlib.error, gzip.BadGzipFile)
    if compression == "xz":
        return lzma.LZMAFile(raw), (EOFError, lzma.LZMAError)
    if compression == "bzip2":
        return bz2.BZ2File(raw), (EOFError, OSError)
    if compression == "zstd":
        zstandard = _import_zstandard(path)
        return io.BufferedReader(_ZstdReader(raw, zstandard), _READ_BYTES), (EOFError, zstandard.ZstdError)
    return raw, ()


def _refuse_archives(path: Path, magic: bytes) -> None:
    for begins, what in _NOT_READ.items():
        if magic.startswith(begins):
            raise UserError(f"{path} is {what}, which is not read: unpack it (gzip, zstd, xz and bzip2 are read)")


def _refuse_tar(path: Path, content: Any) -> None:
    """A tar archive has its magic in its first header, behind the name."""
    end = _TAR_AT + len(_TAR)
    if bytes(content.peek(end)[_TAR_AT:end]) == _TAR:
        raise UserError(f"{path} is a tar archive, which is not read: unpack it")


def _import_zstandard(path: Path) -> Any:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: reading .zst needs the package zstandard (pip install zstandard)") from error
    return zstandard


class _ZstdReader(io.RawIOBase):
    """Frames one after another, as the zstd program writes; a cut last frame raises EOFError.

    The package's own stream reader ends quietly in the middle of a frame, which would lose documents.
    """

    def __init__(self, raw: BinaryIO, zstandard: Any) -> None:
        self._raw = raw
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._rest = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._rest or self._raw.read(_ZSTD_BYTES)
            self._rest = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("the last zstd frame is not complete")
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            self._ready = memoryview(self._frame.decompress(data))
            if self._frame.eof:
                self._rest = self._frame.unused_data
                self._frame = None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
