"""Chat templates: Jinja as transformers renders it, and which part of the text is the assistant's."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cod.data.chat.messages import TRAINED, Message
from megatron_cod.data.reading.documents import utf8
from megatron_cod.errors import UserError

_FOLDER = Path(__file__).parent / "templates"
BUILT_IN = tuple(sorted(path.stem for path in _FOLDER.glob("*.jinja")))
_REWRITES = (
    "the chat template changes earlier text when message {} is added, so its answers cannot be found; mark them in the "
    "template with {{% generation %}} and {{% endgeneration %}}"
)
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")

Span = tuple[int, int]


def read_template(name: str) -> str:
    """The text of a template: one of ``BUILT_IN``, or a file. UserError when it is neither."""
    path = _FOLDER / f"{name}.jinja" if name in BUILT_IN else Path(name)
    if not path.is_file():
        raise UserError(f"--chat-template {name} is no file, and none of {', '.join(BUILT_IN)}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"--chat-template {name} is not UTF-8 text") from None


@dataclass(frozen=True)
class ChatTemplate:
    """A template with the variables that its tokenizer gives it (``eos_token`` and friends)."""

    text: str
    variables: Mapping[str, str]

    @property
    def marked(self) -> bool:
        """Whether the template itself marks what is generated: ``{% generation %}`` ... ``{% endgeneration %}``."""
        return bool(_MARKED.search(self.text))

    def reads(self, key: str) -> bool:
        """Whether the template names that key of a message, or that variable."""
        return bool(re.search(rf"\b{re.escape(key)}\b", self.text))

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, tools: Sequence[Any] = ()
    ) -> str:
        """The conversation as text. UserError when the template raises."""
        return self._render(messages, add_generation_prompt, tools, mark=False)[0]

    def with_answers(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> tuple[str, list[Span]]:
        """The text, and the [start, end) of every answer in it that is trained, end-of-turn token included.

        A template without marks is rendered turn by turn: an answer is what its message adds behind the generation prompt.
        UserError for a template where that is not so, as one that rewrites earlier turns.
        """
        if any("tool_calls" in message for message in messages) and not self.reads("tool_calls"):
            raise UserError("an answer calls a tool, and the chat template writes no 'tool_calls'")
        return self._marked(messages, tools) if self.marked else self._by_turns(messages, tools)

    def _marked(self, messages: Sequence[Message], tools: Sequence[Any]) -> tuple[str, list[Span]]:
        text, spans = self._spans(messages, tools)
        kept: list[Span] = []
        for number, message in enumerate(messages):
            if message.get(TRAINED, True):
                continue
            # How many parts are before this answer, and with it: a template may write none for it, or several.
            first, last = (len(self._spans(messages[:end], tools)[1]) if end else 0 for end in (number, number + 1))
            if self._spans(messages[: number + 1], tools)[1] != spans[:last]:
                raise UserError(_REWRITES.format(number + 1))
            kept += spans[first:last]
        return text, [span for span in spans if span not in kept]

    def _spans(self, messages: Sequence[Message], tools: Sequence[Any]) -> tuple[str, list[Span]]:
        text, spans = self._render(messages, False, tools, mark=True)
        return text, [(int(start), int(end)) for start, end in spans]

    def _by_turns(self, messages: Sequence[Message], tools: Sequence[Any]) -> tuple[str, list[Span]]:
        text, spans = self.render(messages, tools=tools), []
        for number, message in enumerate(messages):
            if message["role"] != "assistant" or not message.get(TRAINED, True):
                continue
            before = self.render(messages[:number], add_generation_prompt=True, tools=tools)
            after = self.render(messages[: number + 1], tools=tools)
            if not (text.startswith(after) and after.startswith(before)):
                raise UserError(_REWRITES.format(number + 1))
            spans.append((len(before), len(after)))
        return text, spans

    def _render(
        self, messages: Sequence[Message], prompt: bool, tools: Sequence[Any], mark: bool
    ) -> tuple[str, list[Any]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                conversations=[[{key: one[key] for key in one if key != TRAINED} for one in messages]],
                tools=list(tools) or None,
                chat_template=self.text,
                return_assistant_tokens_mask=mark,
                add_generation_prompt=prompt,
                **self.variables,
            )
        except Exception as error:  # Jinja's own errors, and those of expressions in templates
            logging.getLogger(__name__).debug("chat template", exc_info=True)
            raise UserError(f"the chat template failed: {' '.join(str(error).split())[:300]}") from None
        text = str(texts[0])
        try:  # a template may read other keys of a message than its content
            utf8(text)
        except ValueError as error:
            raise UserError(f"what the chat template writes {error}") from None
        return text, spans[0] if spans else []
