"""Cut text into documents, and read the text of each."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Literal, NamedTuple, get_args

import orjson

from megatron_cod.errors import UserError

SplitOn = Literal["blank-line", "line", "file"]
SPLIT_ON: tuple[str, ...] = get_args(SplitOn)

_SKIP_BYTES = 1 << 20


class Cut(NamedTuple):
    """An undecoded document. `place` is the byte where it begins, `after` one where reading can continue (None when
    nothing follows that is this reader's), `line` the number (from 1) of its first line, counted from where it began to
    read."""

    place: int
    line: int
    after: int | None
    content: bytes


def cut(
    lines: Iterable[bytes], split_on: str, place: int = 0, end: int | None = None, whole: bool = True
) -> Iterator[Cut]:
    """Documents of `lines`, of which the first begins at byte `place`, without the final line end.

    "blank-line": a line of white space only, or several, separates documents. "line": each line is a document,
    empty ones too, so that they can be counted. "file": everything is one document.

    `end` divides a file among readers, for "line" and "blank-line": a reader stops where the next one, which begins at
    `end` with `whole` false, takes over. A line belongs to the reader in whose bytes it begins, a document between
    blank lines to the one in whose bytes the blank line before it begins. `whole`: a document can begin with the first
    line.
    """
    if split_on == "blank-line":
        yield from _between_blank_lines(lines, place, end, whole)
        return
    if split_on == "file":
        content = b"".join(lines)
        if content:
            yield Cut(0, 1, None, _without_line_end(content.removeprefix(codecs.BOM_UTF8)))
        return
    number = 0
    for line in lines:
        if end is not None and place >= end:
            return
        number, after = number + 1, place + len(line)
        held = [_without_line_end(line.removeprefix(codecs.BOM_UTF8) if not place else line)]
        del line
        # Returned and not kept: it may be a hundred megabytes.
        yield Cut(place, number, after, held.pop())
        place = after


def _between_blank_lines(lines: Iterable[bytes], place: int, end: int | None, whole: bool) -> Iterator[Cut]:
    begin = first = 0
    held: list[bytes] = []
    for number, line in enumerate(lines, start=1):
        past = end is not None and place >= end
        if past and not whole:
            return
        text = line.removeprefix(codecs.BOM_UTF8) if not place else line
        after = place + len(line)
        if text.strip():
            if whole and not held:
                begin, first = place, number
            if whole:
                held.append(text)
        else:
            if held:
                joined = [_without_line_end(b"".join(held))]
                held = []
                yield Cut(begin, first, None if past else after, joined.pop())
            if past:
                return
            whole = True
        place = after
    if held:
        yield Cut(begin, first, None, _without_line_end(b"".join(held)))


def seek_line(content: BinaryIO, place: int) -> int:
    """Move a seekable file to the first line that begins at byte `place` or after it; returns where that is."""
    if place == 0:
        return 0
    content.seek(place - 1)
    # In pieces: the line may be a document of any size, and another reader's.
    while (piece := content.readline(_SKIP_BYTES)) and not piece.endswith(b"\n"):
        pass
    return content.tell()


def skip_bytes(content: BinaryIO, count: int) -> None:
    """Read past `count` bytes of a stream that cannot seek."""
    while count > 0 and (piece := content.read(min(count, _SKIP_BYTES))):
        count -= len(piece)


def cut_documents(lines: Iterable[bytes], split_on: str) -> Iterator[tuple[int, bytes]]:
    """Documents of a whole file, each with the number of its first line."""
    return ((document.line, document.content) for document in cut(lines, split_on))


def _without_line_end(content: bytes) -> bytes:
    return content.removesuffix(b"\n").removesuffix(b"\r")


def json_value(line: bytes) -> Any:
    """What one line of JSON holds; raises UserError with the reason if it is invalid."""
    try:
        # Needs half the memory for a large text. Stricter: what it refuses, such as NaN, is left to Python to decide.
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        raise UserError(_not_utf8(error)) from None
    except json.JSONDecodeError as error:
        # Some of Python's messages end with "at" themselves.
        raise UserError(f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}") from None
    except RecursionError:
        raise UserError("not usable JSON: nested too deeply") from None


def texts_of_json(line: bytes, keys: Sequence[str]) -> list[str]:
    """The values of `keys` in one JSON line; raises UserError with the reason if the line is invalid."""
    record = json_value(line)
    if not isinstance(record, dict):
        raise UserError(f"needs a JSON object on each line, found a {type(record).__name__}")
    texts = []
    for key in keys:
        if key not in record:
            found = ", ".join(list(record)[:8]) or "none"
            raise UserError(f"no key {key!r} (keys here: {found}); choose with --json-keys")
        if not isinstance(record[key], str):
            raise UserError(f"key {key!r} holds a {type(record[key]).__name__}, not a string")
        texts.append(record[key])
    return texts


def text_of_plain(content: bytes) -> str:
    """Decode a plain document; raises UserError when it is not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(_not_utf8(error)) from None


def utf8(text: str, first: int = 0) -> bytes:
    """The bytes of a text; raises UserError for half a surrogate pair, which JSON can name and no file can hold.

    first: the number of its first character, where the text is a piece of another.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        place = first + error.start
        raise UserError(f"holds a lone surrogate at character {place}, which UTF-8 cannot hold") from None


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}"
