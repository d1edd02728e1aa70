"""One message of a conversation, however it is written: role, text, whether it is trained, and the calls of tools in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from megatron_cod.errors import UserError

Message = dict[str, Any]
"""{"role", "content"}, and what a template may read beside them; ``TRAINED`` where an answer is context only."""
ROLES = ("system", "user", "assistant", "tool")
TRAINED = "__trained__"
_ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
"""ShareGPT's names for roles, and those of its variants."""
_SWITCHES = ("weight", "loss", "train", "training", "trainable")
"""Keys of published data for whether an answer is trained: OpenAI's and Mistral's, ms-swift's, Axolotl's."""
_READ = {"role", "from", "content", "value", "tool_calls", "function_call", "tool_call_id", *_SWITCHES}


def as_list(value: Any, what: str) -> Any:
    """A list, also where a table holds it as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError as error:
            raise UserError(f"{what} begins as a JSON list, but is none: {error}") from None
    return value


def read_message(number: int, found: Any) -> tuple[Message, list[str]]:
    """A message as templates take it, and the keys of it that only a template could read. UserError for anything else."""
    if not isinstance(found, dict):
        raise UserError(f"message {number} is a {type(found).__name__}, not an object")
    # Tables fill keys that other rows have with nothing.
    message = {key: value for key, value in found.items() if value is not None}
    named = message.get("role", message.get("from"))
    role = _ALIASES.get(named, named) if isinstance(named, str) else named
    if role not in ROLES:
        raise UserError(f"message {number} has the role {named!r}; there are {', '.join(ROLES)}")
    where = f"message {number} ({role})"
    content = message.get("content", message.get("value"))
    calls = _calls(where, message, content if named == "function_call" else None)
    if calls and (content is None or named == "function_call"):
        content = ""
    others = [key for key in message if key not in _READ]
    made = {"role": role, "content": _text(where, content)} | {key: message[key] for key in others}
    if calls:
        made["tool_calls"] = calls
    if "tool_call_id" in message:
        made["tool_call_id"] = message["tool_call_id"]
    if not _is_trained(where, role, message):
        made[TRAINED] = False
    return made, others


def _text(where: str, content: Any) -> str:
    """The text, of parts where it is a list of them."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise UserError(f"{where} has no text in 'content'")
    return "".join(_part(where, part) for part in content)


def _part(where: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise UserError(f"{where} has a part of type {kind!r} in 'content': only text is trained on")
    return str(part["text"])


def _is_trained(where: str, role: str, message: Mapping[str, Any]) -> bool:
    """The value of the keys of ``_SWITCHES``; without any the answer is trained."""
    switches = {key: message[key] for key in _SWITCHES if key in message}
    for key, value in switches.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise UserError(f"{where} has {key!r} {value!r}: an answer is trained (1) or not (0)")
        if role != "assistant" and value:
            raise UserError(f"{where} has {key!r} {value!r}: only answers can be trained")
    if len(set(map(bool, switches.values()))) > 1:
        raise UserError(f"{where}: {' and '.join(map(repr, switches))} contradict each other")
    return all(switches.values())


def _calls(where: str, message: Mapping[str, Any], written: Any) -> list[dict[str, Any]]:
    """The calls of tools, their arguments as an object, as templates expect them.

    written: the text of ShareGPT's ``function_call``, the JSON of one call.
    """
    found: Any = as_list(message.get("tool_calls") or [], f"{where}: 'tool_calls'")
    if not found and "function_call" in message:
        found = [message["function_call"]]
    if written is not None:
        found = [_parsed(written)]
    if not isinstance(found, list):
        raise UserError(f"{where}: 'tool_calls' holds a {type(found).__name__}, not a list")
    return [_call(where, one) for one in found]


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return text


def _call(where: str, call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(f"{where} calls a tool without a name")
    function = {key: value for key, value in function.items() if value is not None}
    arguments = _parsed(function.get("arguments", {}))
    outer = {key: value for key, value in call.items() if value is not None} if "function" in call else {}
    return {"type": "function"} | outer | {"function": function | {"arguments": arguments}}
