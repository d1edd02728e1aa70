"""Read conversations from JSON lines, whatever their layout, each with the place it came from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cod.data.documents import cut_documents, json_value, utf8
from megatron_cod.data.inputs import find_inputs, open_input
from megatron_cod.errors import UserError

Message = dict[str, Any]
ROLES = ("system", "user", "assistant")


class BadLine(UserError):
    """What is wrong with one line; the text names file and line."""


@dataclass(frozen=True)
class Conversation:
    """Messages {"role", "content"}, of which the last is the assistant's."""

    messages: list[Message]
    place: str
    """FILE:LINE, or FILE, item N."""


def _text(record: Mapping[str, Any], key: str) -> str:
    if key not in record:
        raise UserError(f"no key {key!r} (keys here: {', '.join(list(record)[:8]) or 'none'})")
    if not isinstance(record[key], str):
        raise UserError(f"key {key!r} holds a {type(record[key]).__name__}, not a string")
    return str(record[key])


def _of_messages(record: Mapping[str, Any]) -> list[Message]:
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise UserError("key 'messages' must hold a list of {role, content}, and at least one")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise UserError(f"message {number} is a {type(message).__name__}, not an object")
        role = message.get("role")
        if role not in ROLES:
            raise UserError(f"message {number} has the role {role!r}; there are {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise UserError(f"message {number} ({role}) has no text in 'content'")
    return messages


def _of_prompt(record: Mapping[str, Any]) -> list[Message]:
    return _turn(_text(record, "prompt"), _text(record, "completion"))


def _of_instruction(record: Mapping[str, Any]) -> list[Message]:
    """Alpaca's and Commonsense170K's: an input, where there is one, follows the instruction; other keys are not read."""
    given = "" if record.get("input") is None else record["input"]
    if not isinstance(given, str):
        raise UserError(f"key 'input' holds a {type(given).__name__}, not a string")
    return _turn("\n\n".join(part for part in (_text(record, "instruction"), given) if part), _text(record, "output"))


def _turn(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@dataclass(frozen=True)
class _Layout:
    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], list[Message]]


LAYOUTS: dict[str, _Layout] = {
    "messages": _Layout(("messages",), _of_messages),
    "prompt": _Layout(("prompt", "completion"), _of_prompt),
    "instruction": _Layout(("instruction", "output"), _of_instruction),
}
"""Name -> the keys it is recognised by, and how it is read. Order decides where several fit."""


def messages_of(record: Any, layout: str = "auto") -> list[Message]:
    """The messages of one record. UserError, without a place, for what is no conversation that can be trained on."""
    if not isinstance(record, dict):
        raise UserError(f"needs a JSON object, found a {type(record).__name__}")
    chosen = LAYOUTS.get(layout) or next((one for one in LAYOUTS.values() if all(k in record for k in one.keys)), None)
    if chosen is None:
        wanted = ", or ".join(" and ".join(one.keys) for one in LAYOUTS.values())
        raise UserError(f"none of the known layouts (keys here: {', '.join(list(record)[:8]) or 'none'}): {wanted}")
    messages = chosen.read(record)
    if messages[-1]["role"] != "assistant":
        raise UserError(f"the last message is the {messages[-1]['role']}'s: there is no answer to train on")
    if any(m["role"] == "assistant" and not m["content"].strip() for m in messages):
        raise UserError("an answer is empty: there is no token to train on")
    for number, message in enumerate(messages, 1):
        try:
            utf8(message["content"])
        except ValueError as error:
            raise UserError(f"message {number} ({message['role']}) {error}") from None
    return messages


def _records(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(place, how to parse what is there); a file that begins with ``[`` is one JSON list, as Commonsense170K is."""
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
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Conversation]:
    """Every conversation of the files, in order. Blank lines are nothing.

    layout: of ``LAYOUTS``, or "auto" to tell by each line's keys. bad: is told of a line that cannot be used, which is
    then left out; without it the first one raises ``BadLine``. say: see
    ``find_inputs``. UserError for files that are missing or damaged.
    """
    for source in find_inputs(patterns, "jsonl", say):
        for place, parse in _records(source.path):
            try:
                yield Conversation(messages_of(parse(), layout), place)
            except ValueError as error:
                found = BadLine(f"{place}: {error}")
                if bad is None:
                    raise found from None
                bad(found)
