"""Find the inputs: files named by paths and globs, and datasets that Hugging Face saved to disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Literal, cast

from megatron_cod.common.lists import listed
from megatron_cod.data.reading.compression import SUFFIXES
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
_SHOWN = 3


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


def _log_to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def find_inputs(
    patterns: Sequence[str], input_format: str = "auto", log: Callable[[str], None] = _log_to_stderr
) -> list[InputFile]:
    """Files named by paths and globs, in the order given, each once; a glob's matches are sorted.

    A file keeps the first name it is given; further ones, links too, are omitted, and `log` gets a line. A folder must be
    a dataset written by Hugging Face's `save_to_disk`; its files follow in its order. `input_format` is "jsonl",
    "text", or "auto" to go by the file's name. Raises UserError for a path that is missing, another folder, a glob
    without matches, or a name that "auto" does not know.
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
        log(f"each input is read once; skipped: {listed(again, _SHOWN)}")
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
    """A table is known by its first bytes; of the rest, the option decides, or the name."""
    table = _table_format(path)
    if table is not None:
        return table
    suffixes = [suffix for suffix in path.suffixes if suffix not in SUFFIXES]
    found = _SUFFIX_FORMATS.get(suffixes[-1].lower()) if suffixes else None
    if input_format != "auto" and found not in ("parquet", "arrow"):
        return cast(Format, input_format)
    if found is None:
        raise UserError(f"input {path}: the format is not known from the name; give --input-format jsonl or text")
    return found


def _table_format(path: Path) -> Format | None:
    with path.open("rb") as file:
        begins = file.read(len(b"ARROW1"))
    return "parquet" if begins.startswith(b"PAR1") else "arrow" if begins == b"ARROW1" else None
