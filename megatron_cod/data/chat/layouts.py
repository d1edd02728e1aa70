"""The layouts that chat data is published in: one record -> messages, and the keys of it that nothing reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_cod.data.chat.messages import TRAINED, Message, as_list, read_message
from megatron_cod.data.reading.documents import utf8
from megatron_cod.errors import UserError


@dataclass
class Chat:
    """The messages of one record."""

    messages: list[Message]
    tools: list[Any] = field(default_factory=list)
    """Descriptions of tools, for templates that write them."""
    for_templates: set[str] = field(default_factory=set)
    """Keys of messages that only a template could read."""
    unread: set[str] = field(default_factory=set)
    """Keys of the record that nothing reads, and that may be about how it is to be trained."""


_WITH_ALL = ("system", "tools", "weight")
"""Keys that any layout may have."""
_LABELS = frozenset(
    {
        *(
            "id",
            "idx",
            "index",
            "uid",
            "uuid",
            "hash",
            "conversation_id",
            "conversation_hash",
            "message_id",
            "prompt_id",
        ),
        *("source", "sources", "dataset", "subset", "split", "origin", "data_source", "task", "task_name", "task_type"),
        *(
            "category",
            "categories",
            "topic",
            "topics",
            "domain",
            "tag",
            "tags",
            "type",
            "kind",
            "difficulty",
            "license",
        ),
        *("lang", "language", "languages", "meta", "metadata", "model", "model_name", "generator", "provenance", "url"),
        *("title", "created", "created_at", "timestamp", "time", "date", "turn", "turns", "num_turns", "length"),
        *(
            "token_count",
            "num_tokens",
            "text_length",
            "licence",
            "author",
            "user_id",
            "annotator",
            "country",
            "version",
        ),
    }
)
"""Keys about the source of a record; any other one that is not read is named."""


def _text(record: Mapping[str, Any], key: str) -> str:
    if key not in record:
        raise UserError(f"no key {key!r} (keys here: {', '.join(list(record)[:8]) or 'none'})")
    if not isinstance(record[key], str):
        raise UserError(f"key {key!r} holds a {type(record[key]).__name__}, not a string")
    return str(record[key])


def _turn(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _listed(found: Any, key: str) -> Chat:
    """A list of messages."""
    found = as_list(found, f"key {key!r}")
    if not isinstance(found, list) or not found:
        raise UserError(f"key {key!r} must hold a list of {{role, content}}, and at least one")
    chat = Chat([])
    for number, one in enumerate(found, 1):
        message, others = read_message(number, one)
        chat.messages.append(message)
        chat.for_templates.update(others)
    return chat


def _of_messages(record: Mapping[str, Any]) -> Chat:
    return _listed(record.get("messages"), "messages")


def _of_conversations(record: Mapping[str, Any]) -> Chat:
    return _listed(record.get("conversations"), "conversations")


def _of_prompt(record: Mapping[str, Any]) -> Chat:
    """Each is a text or a list of messages; of these only the completion's answers are trained, as in TRL."""
    prompt, completion = record.get("prompt"), record.get("completion")
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return Chat(_turn(_text(record, "prompt"), _text(record, "completion")))
    first = _listed(prompt, "prompt") if isinstance(prompt, list) else None
    last = _listed(completion, "completion") if isinstance(completion, list) else None
    before = first.messages if first else _turn(_text(record, "prompt"), "")[:1]
    behind = last.messages if last else _turn("", _text(record, "completion"))[1:]
    context = [one | {TRAINED: False} if one["role"] == "assistant" else one for one in before]
    keys = {key for part in (first, last) if part for key in part.for_templates}
    return Chat([*context, *behind], for_templates=keys)


def _of_instruction(record: Mapping[str, Any]) -> Chat:
    """Alpaca's and Commonsense170K's: an input, where there is one, follows the instruction; turns before are in
    ``history`` (LLaMA-Factory's)."""
    given = "" if record.get("input") is None else record["input"]
    if not isinstance(given, str):
        raise UserError(f"key 'input' holds a {type(given).__name__}, not a string")
    history = record.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(one, list) and list(map(type, one)) == [str, str] for one in history
    ):
        raise UserError("key 'history' must hold a list of [question, answer]")
    question = "\n\n".join(part for part in (_text(record, "instruction"), given) if part)
    earlier = [message for one in history for message in _turn(*one)]
    return Chat([*earlier, *_turn(question, _text(record, "output"))])


@dataclass(frozen=True)
class Layout:
    """``keys``: those it is recognised by; ``more``: those it reads beside them, or omits on purpose."""

    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Chat]
    more: tuple[str, ...] = ()


LAYOUTS: dict[str, Layout] = {
    "messages": Layout(("messages",), _of_messages),
    "prompt": Layout(("prompt", "completion"), _of_prompt),
    # Commonsense170K repeats the end of each output as its answer.
    "instruction": Layout(("instruction", "output"), _of_instruction, ("input", "history", "answer")),
    "conversations": Layout(("conversations",), _of_conversations),
}
"""Name -> the keys it is recognised by, and how it is read. Order decides where several fit."""


def read_chat(found: Any, layout: str = "auto") -> Chat:
    """The chat of one record. UserError, without a place, for what is no conversation that can be trained on."""
    if not isinstance(found, dict):
        raise UserError(f"needs a JSON object, found a {type(found).__name__}")
    record = {key: value for key, value in found.items() if value is not None}
    chosen = LAYOUTS.get(layout) or next((one for one in LAYOUTS.values() if all(k in record for k in one.keys)), None)
    if chosen is None:
        wanted = ", or ".join(" and ".join(one.keys) for one in LAYOUTS.values())
        raise UserError(f"none of the known layouts (keys here: {', '.join(list(found)[:8]) or 'none'}): {wanted}")
    chat = chosen.read(record)
    _complete(chat, record)
    chat.unread = set(record) - {*chosen.keys, *chosen.more, *_WITH_ALL} - _LABELS
    _check(chat.messages)
    return chat


def _complete(chat: Chat, record: Mapping[str, Any]) -> None:
    """What a record may have beside its messages."""
    system = record.get("system", "")
    if not isinstance(system, str):
        raise UserError(f"key 'system' holds a {type(system).__name__}, not a string")
    if system and chat.messages[0]["role"] == "system":
        raise UserError("key 'system' and the first message are both the system's")
    if system:
        chat.messages.insert(0, {"role": "system", "content": system})
    tools = as_list(record.get("tools") or [], "key 'tools'")
    if not isinstance(tools, list):
        raise UserError(f"key 'tools' holds a {type(tools).__name__}, not a list")
    chat.tools = tools
    if record.get("weight", 1) != 1:
        raise UserError(f"key 'weight' holds {record['weight']!r}: a conversation counts once; omit it or repeat it")


def _check(messages: list[Message]) -> None:
    """UserError for messages that leave nothing to train on, or that are no text."""
    if messages[-1]["role"] != "assistant":
        raise UserError(f"the last message is the {messages[-1]['role']}'s: there is no answer to train on")
    trained = [m for m in messages if m["role"] == "assistant" and m.get(TRAINED, True)]
    if not trained:
        raise UserError("no answer is to be trained: each has weight 0")
    if any(not m["content"].strip() and not m.get("tool_calls") for m in trained):
        raise UserError("an answer is empty: there is no token to train on")
    for number, message in enumerate(messages, 1):
        try:
            utf8(message["content"])
        except ValueError as error:
            raise UserError(f"message {number} ({message['role']}) {error}") from None
