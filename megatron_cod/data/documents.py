"""Cut an input into documents, and read the text of each."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from megatron_cod.data.inputs import InputFile, open_input

SplitOn = Literal["blank-line", "line", "file"]
SPLIT_ON: tuple[str, ...] = get_args(SplitOn)

# Large enough that passing a batch to a worker costs little, small enough to keep workers even.
BATCH_BYTES = 1 << 18
BATCH_DOCUMENTS = 4096


@dataclass
class RawBatch:
    """Undecoded documents of one file; `position` counts bytes on disk read so far, over all files."""

    source: InputFile
    contents: list[bytes] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    position: int = 0


def read_batches(inputs: Sequence[InputFile], split_on: str) -> Iterator[RawBatch]:
    """All documents of all files in order. `split_on` applies to plain text; JSON has one a line."""
    done = 0
    for source in inputs:
        with open_input(source.path) as stream:
            batch, size = RawBatch(source), 0
            how = "line" if source.format == "jsonl" else split_on
            for line, content in cut_documents(stream.content, how):
                batch.contents.append(content)
                batch.lines.append(line)
                size += len(content)
                if size >= BATCH_BYTES or len(batch.contents) >= BATCH_DOCUMENTS:
                    batch.position = done + min(stream.position(), source.size)
                    yield batch
                    batch, size = RawBatch(source), 0
        done += source.size
        batch.position = done
        yield batch


def cut_documents(lines: Iterable[bytes], split_on: str) -> Iterator[tuple[int, bytes]]:
    """Documents with the number (from 1) of their first line, without the final line end.

    "blank-line": a line of white space only, or several, stands between documents. "line": each line is
    a document, empty ones too, so that they can be counted. "file": everything is one document.
    """
    first = 1
    held: list[bytes] = []
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if split_on == "line":
            yield number, _without_line_end(line)
        elif split_on == "blank-line" and not line.strip():
            if held:
                yield first, _without_line_end(b"".join(held))
            held = []
        else:
            if not held:
                first = number
            held.append(line)
    if held:
        yield first, _without_line_end(b"".join(held))


def _without_line_end(content: bytes) -> bytes:
    return content.removesuffix(b"\n").removesuffix(b"\r")


def json_value(line: bytes) -> Any:
    """What one line of JSON holds; raises ValueError saying what is wrong with it."""
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(error)) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not usable JSON: nested too deeply") from None


def texts_of_json(line: bytes, keys: Sequence[str]) -> list[str]:
    """The values of `keys` in one JSON line; raises ValueError saying what is wrong with the line."""
    record = json_value(line)
    if not isinstance(record, dict):
        raise ValueError(f"needs a JSON object on each line, found a {type(record).__name__}")
    texts = []
    for key in keys:
        if key not in record:
            found = ", ".join(list(record)[:8]) or "none"
            raise ValueError(f"no key {key!r} (keys here: {found}); choose with --json-keys")
        if not isinstance(record[key], str):
            raise ValueError(f"key {key!r} holds a {type(record[key]).__name__}, not a string")
        texts.append(record[key])
    return texts


def text_of_plain(content: bytes) -> str:
    """Decode a plain document; raises ValueError when it is not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(error)) from None


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}"
