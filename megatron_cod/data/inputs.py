"""Find the inputs and open them: files, plain or compressed, and datasets that Hugging Face saved to disk."""

from __future__ import annotations

import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from megatron_cod.errors import UserError, bad_input

Format = Literal["jsonl", "text", "parquet", "arrow"]

_SUFFIX_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_COMPRESSION_SUFFIXES = (".gz", ".zst")
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SHOWN = 3
_READ_BYTES = 1 << 20
# Of compressed bytes: what they expand to is held at once, and zeros expand ten thousandfold.
_ZSTD_BYTES = 1 << 15


@dataclass(frozen=True)
class InputFile:
    """One file to read; `size` is its length on disk in bytes, before decompression, `mtime_ns` its time of change."""

    path: Path
    size: int
    format: Format
    mtime_ns: int = 0

    @property
    def has_rows(self) -> bool:
        """Whether it is a table, in which places are row numbers; else places are bytes of the uncompressed content."""
        return self.format in ("parquet", "arrow")


@dataclass(frozen=True)
class InputStream:
    """The uncompressed content, and how many bytes of the file on disk have been read so far."""

    content: BinaryIO
    position: Callable[[], int]


def _say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def find_inputs(
    patterns: Sequence[str], input_format: str = "auto", say: Callable[[str], None] = _say_on_stderr
) -> list[InputFile]:
    """Files named by paths and globs, in the order given, each once; a glob's matches are sorted.

    A file keeps the first name it is given; further ones, links too, are left out, and `say` is told. A folder must be
    a dataset written by Hugging Face's `save_to_disk`; its files follow in its order. `input_format` is "jsonl",
    "text", or "auto" to go by the file's name. Raises UserError for a path that is missing, another folder, a glob
    without matches, or a name whose format "auto" cannot tell.
    """
    names: dict[Path, Path] = {}
    again: list[str] = []
    for path in (path for pattern in patterns for path in _named_by(pattern)):
        first = names.setdefault(path.resolve(), path)
        if first is not path:
            again.append(f"{path} ({first} again)")
    if not names:
        raise UserError("no input given")
    if again:
        more = f" and {len(again) - _SHOWN:,} more" if len(again) > _SHOWN else ""
        say(f"each input is read once; left out: {', '.join(again[:_SHOWN])}{more}")
    found = []
    for path in names.values():
        status = path.stat()
        found.append(InputFile(path, status.st_size, _format_of(path, input_format), status.st_mtime_ns))
    return found


def _named_by(pattern: str) -> list[Path]:
    """The files that a path or a glob names."""
    path = Path(pattern)
    if path.is_dir():
        return _saved_dataset(path)
    if path.exists():
        return [path]
    matches = [Path(name) for name in sorted(glob(pattern, recursive=True))]
    matches = [match for match in matches if match.is_file()]
    if not matches:
        what = "matches no file" if has_magic(pattern) else "does not exist"
        raise UserError(f"input {pattern} {what}")
    return matches


def _saved_dataset(folder: Path) -> list[Path]:
    """The Arrow files of a folder that `datasets` wrote with save_to_disk, in order."""
    parts = folder / "dataset_dict.json"
    if parts.is_file():
        with bad_input(parts):
            splits = json.loads(parts.read_text(encoding="utf-8"))["splits"]
        names = " or ".join(str(folder / name) for name in splits)
        raise UserError(f"input {folder} is a saved dataset of several splits; name one: {names}")
    state = folder / "state.json"
    if not state.is_file():
        raise UserError(
            f"input {folder} is a folder; name its files, such as '{folder}/*.jsonl' "
            "(or a folder written by the save_to_disk of Hugging Face datasets)"
        )
    try:
        files = [folder / entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"input {folder} is not a usable saved dataset: {state} is damaged ({error})") from None
    missing = [path.name for path in files if not path.is_file()]
    if missing or not files:
        raise UserError(f"input {folder} is not a whole saved dataset: {', '.join(missing) or 'its data'} is missing")
    return files


def _format_of(path: Path, input_format: str) -> Format:
    suffixes = [suffix for suffix in path.suffixes if suffix not in _COMPRESSION_SUFFIXES]
    found = _SUFFIX_FORMATS.get(suffixes[-1].lower()) if suffixes else None
    if input_format != "auto" and found not in ("parquet", "arrow"):
        return cast(Format, input_format)
    if found is None:
        raise UserError(f"input {path}: the name does not tell the format; give --input-format jsonl or text")
    return found


def is_compressed(path: Path) -> bool:
    """Whether the content begins as gzip or zstd; the name does not matter."""
    with path.open("rb") as raw:
        return _compression(raw.read(4)) is not None


def _compression(magic: bytes) -> str | None:
    if magic[:2] == _GZIP:
        return "gzip"
    if magic == _ZSTD or (magic[1:] == b"\x2a\x4d\x18" and magic[0] >> 4 == 5):
        return "zstd"
    return None


@contextmanager
def open_input(path: Path) -> Iterator[InputStream]:
    """Open a plain, gzip or zstd file for reading; the content decides which, not the name.

    Raises UserError naming the file when the compressed data is damaged or ends early; where nothing is left of it, the
    name tells.
    """
    with path.open("rb", buffering=_READ_BYTES) as raw:
        damaged: tuple[type[BaseException], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
        magic = raw.read(4)
        compression = _compression(magic)
        raw.seek(0)
        named = path.suffix.lower() in _COMPRESSION_SUFFIXES
        if compression is None and named and any(known.startswith(magic) for known in (_GZIP, _ZSTD)):
            raise UserError(f"{path}: damaged or cut compressed file ({len(magic)} bytes)")
        content: BinaryIO = raw
        if compression == "gzip":
            content = cast(BinaryIO, gzip.GzipFile(fileobj=raw))
        elif compression == "zstd":
            zstandard = _import_zstandard(path)
            damaged = (*damaged, zstandard.ZstdError)
            content = io.BufferedReader(_ZstdReader(raw, zstandard), _READ_BYTES)
        try:
            yield InputStream(content, raw.tell)
        except damaged as error:
            raise UserError(f"{path}: damaged or cut compressed file ({error})") from error


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
