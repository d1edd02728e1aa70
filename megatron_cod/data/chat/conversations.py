"""Read conversations from JSON lines and tables, whatever their layout, each with the place it came from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cod.data.chat.layouts import Chat, read_chat
from megatron_cod.data.chat.messages import Message
from megatron_cod.data.reading.arrow import read_objects
from megatron_cod.data.reading.compression import open_input
from megatron_cod.data.reading.documents import cut_documents, json_value
from megatron_cod.data.reading.inputs import InputFile, find_inputs
from megatron_cod.errors import UserError


class BadLine(UserError):
    """What is wrong with one line; the text names file and line."""


@dataclass(frozen=True)
class Conversation:
    """A chat, and where it was found."""

    chat: Chat
    place: str
    """FILE:LINE, FILE, item N, or FILE, row N."""

    @property
    def messages(self) -> list[Message]:
        """Its messages {"role", "content"}, of which the last is the assistant's."""
        return self.chat.messages


def _records(source: InputFile) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(place, how to parse what is there)."""
    if source.has_rows:
        for number, row in enumerate(read_objects(source), 1):
            yield f"{source.path}, row {number}", lambda row=row: row  # type: ignore[misc]
        return
    yield from _json_records(source.path)


def _json_records(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """A file that begins with ``[`` is one JSON list, as Commonsense170K is."""
    with open_input(path) as stream:
        lines = cut_documents(stream.content, "line")
        for number, line in lines:
            if number == 1 and line.lstrip().startswith(b"["):
                text = b"\n".join([line, *(rest for _, rest in lines)])
                try:
                    items = json.loads(text)
                except ValueError as error:
                    raise BadLine(f"{path}: begins as a JSON list, but is none: {error}") from None
                for index, item in enumerate(items, 1):
                    yield f"{path}, item {index}", lambda item=item: item  # type: ignore[misc]
            elif line.strip():
                yield f"{path}:{number}", lambda line=line: json_value(line)  # type: ignore[misc]


def read_conversations(
    patterns: Sequence[str],
    layout: str = "auto",
    bad: Callable[[BadLine], None] | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> Iterator[Conversation]:
    """Every conversation of the files, in order. Blank lines are skipped.

    layout: of ``LAYOUTS``, or "auto" to recognize it by each line's keys. bad: is called for each invalid line, which is
    then omitted; without it the first one raises ``BadLine``. log: see
    ``find_inputs``. UserError for files that are missing or damaged.
    """
    for source in find_inputs(patterns, "jsonl", log):
        for place, parse in _records(source):
            try:
                yield Conversation(read_chat(parse(), layout), place)
            except ValueError as error:
                found = BadLine(f"{place}: {error}")
                if bad is None:
                    raise found from None
                bad(found)
