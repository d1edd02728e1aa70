"""Divide the inputs into parts that can be read apart, and read a part in batches of undecoded documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from megatron_cod.data.reading.arrow import Row, divide_rows, read_rows
from megatron_cod.data.reading.compression import is_compressed, open_input
from megatron_cod.data.reading.documents import cut, seek_line, skip_bytes, text_of_plain, texts_of_json
from megatron_cod.data.reading.inputs import InputFile
from megatron_cod.errors import UserError

# Of input, at most and at least: large enough that starting a part costs nothing, in a small input small enough to keep
# many workers busy.
PART_BYTES, _SMALL_PART_BYTES = 1 << 25, 1 << 21
_PARTS = 64
# Small enough to bound memory, large enough to spread what a batch costs.
BATCH_BYTES = 1 << 18
BATCH_DOCUMENTS = 4096


class Slice(NamedTuple):
    """A piece of input number `file`: bytes or rows from `start` up to `end`, None for the end of the file. `size` is
    its share of the bytes on disk."""

    file: int
    start: int
    end: int | None
    size: int


@dataclass
class RawBatch:
    """Undecoded documents of one file: bytes of a text file, or rows of a table.

    `places` [documents] are bytes of the uncompressed content, or row numbers from 0; `lines` [documents] numbers from
    1, counted from `start`. Reading continues at `after`, None for the next slice. `position` counts bytes on disk read
    so far, within the slice.
    """

    source: InputFile
    start: int = 0
    contents: list[bytes | Row] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    after: int | None = None
    position: int = 0


def part_bytes(inputs: Sequence[InputFile]) -> int:
    """How large a part is."""
    return min(PART_BYTES, max(sum(source.size for source in inputs) // _PARTS, _SMALL_PART_BYTES))


def divide(inputs: Sequence[InputFile], split_on: str) -> list[tuple[Slice, ...]]:
    """Parts of about `part_bytes` that cover all inputs in order. Depends on the files alone, not on who reads them.

    Plain files of lines are divided by bytes, tables by rows; a compressed file, or one that is a single document, is
    one piece. Small files share a part.
    """
    parts: list[tuple[Slice, ...]] = []
    held: list[Slice] = []
    size, wanted = 0, part_bytes(inputs)
    for number, source in enumerate(inputs):
        for piece in _pieces(number, source, split_on, wanted):
            held.append(piece)
            size += piece.size
            if size >= wanted:
                parts.append(tuple(held))
                held, size = [], 0
    if held:
        parts.append(tuple(held))
    return parts


def _pieces(number: int, source: InputFile, split_on: str, wanted: int) -> Iterator[Slice]:
    if source.has_rows:
        ranges = divide_rows(source, wanted)
        rows = max(ranges[-1][1], 1) if ranges else 1
        for first, last in ranges:
            yield Slice(number, first, last, source.size * last // rows - source.size * first // rows)
        return
    whole = source.format == "text" and split_on == "file"
    if source.size <= wanted or whole or is_compressed(source.path):
        yield Slice(number, 0, None, source.size)
        return
    for start in range(0, source.size, wanted):
        end = min(start + wanted, source.size)
        yield Slice(number, start, end if end < source.size else None, end - start)


def read_slice(
    source: InputFile, piece: Slice, keys: Sequence[str], split_on: str, resume: int | None = None
) -> Iterator[RawBatch]:
    """The documents of a slice in order; from `resume` on, a batch's `after`, where a reading was broken off.

    `split_on` applies to plain text; JSON has a document a line. Raises UserError, naming it, for unreadable input.
    """
    if source.has_rows:
        yield from _read_table(source, piece, keys, resume)
    else:
        yield from _read_text(source, piece, split_on, resume)


def _read_table(source: InputFile, piece: Slice, keys: Sequence[str], resume: int | None) -> Iterator[RawBatch]:
    first = piece.start if resume is None else resume
    assert piece.end is not None
    for group in read_rows(source, keys, first, piece.end):
        places = list(range(group.place, group.place + len(group.rows)))
        lines = [place + 1 for place in places]
        # Which row the bytes of a table on disk belong to is unknown: each counts the same.
        position = piece.size * (places[-1] + 1 - piece.start) // (piece.end - piece.start)
        contents = cast(list[bytes | Row], group.rows)  # not a copy: who works through them empties the list
        yield RawBatch(source, 0, contents, places, lines, places[-1] + 1, position)


def _read_text(source: InputFile, piece: Slice, split_on: str, resume: int | None) -> Iterator[RawBatch]:
    how = "line" if source.format == "jsonl" else split_on
    with open_input(source.path) as stream:
        start = piece.start if resume is None else resume
        if is_compressed(source.path):
            skip_bytes(stream.content, start)
        else:
            start = seek_line(stream.content, start)
        batch, size = RawBatch(source, start), 0
        whole = resume is not None or piece.start == 0
        for document in cut(stream.content, how, start, piece.end, whole):
            batch.contents.append(document.content)
            batch.places.append(document.place)
            batch.lines.append(document.line)
            batch.after = document.after
            size += len(document.content)
            del document  # a large one must not live on in this frame
            if size >= BATCH_BYTES or len(batch.contents) >= BATCH_DOCUMENTS:
                batch.position = min(stream.position() - piece.start, piece.size)
                yield batch
                batch, size = RawBatch(source, start), 0
        if batch.contents:
            batch.position = piece.size
            yield batch


def texts_of(source: InputFile, content: bytes | Row, keys: Sequence[str]) -> list[str]:
    """The texts of one document, one a key; raises UserError with the reason if it is invalid."""
    if isinstance(content, tuple):
        for key, value in zip(keys, content, strict=True):
            if value is None:
                raise UserError(f"column {key!r} holds nothing (null)")
        return [text_of_plain(value) for value in content if value is not None]
    if source.format == "text":
        return [text_of_plain(content)]
    return texts_of_json(content, keys) if content.strip() else [""] * len(keys)


def read_batches(inputs: Sequence[InputFile], split_on: str, keys: Sequence[str] = ("text",)) -> Iterator[RawBatch]:
    """All documents of all files in order, for a single reader."""
    for part in divide(inputs, split_on):
        for piece in part:
            yield from read_slice(inputs[piece.file], piece, keys, split_on)


def where(source: InputFile, start: int, line: int) -> str:
    """The file and the line or row of a document; `line` as in a batch whose reading began at byte `start`.

    Counts the lines before `start`, which takes as long as reading them.
    """
    if source.has_rows:
        return f"{source.path}, row {line}"
    with open_input(source.path) as stream:
        left = start
        while left > 0 and (piece := stream.content.read(min(left, 1 << 20))):
            left -= len(piece)
            line += piece.count(b"\n")
    return f"{source.path}, line {line}"
