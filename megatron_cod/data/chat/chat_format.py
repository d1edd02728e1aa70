"""A tokenizer and a chat template together: conversations -> ids, and which of them are trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_cod.data.chat.encoders import ByteEncoder, Encoder, HuggingFaceEncoder, SentencePieceEncoder
from megatron_cod.data.chat.messages import Message
from megatron_cod.data.chat.templates import ChatTemplate, Span, read_template
from megatron_cod.data.tokenizers.choice import BYTE_VOCABULARY, TokenizerChoice
from megatron_cod.errors import UserError

PLAIN = "plain"
_SENTENCEPIECE = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")


class ChatFormat:
    """How conversations look to the model."""

    def __init__(self, encoder: Encoder, template: str) -> None:
        """template: its text. UserError where it needs an end token that the tokenizer has not."""
        self.encoder = encoder
        self.template = ChatTemplate(template, encoder.variables)
        if "eos_token" in template and "eos_token" not in encoder.variables:
            raise UserError(
                "the chat template uses eos_token, and the tokenizer has none; Hugging Face tokenizers name it in "
                "tokenizer_config.json"
            )

    def answers(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> tuple[str, list[Span]]:
        """A whole conversation as text, and the [start, end) that are trained. UserError when the template raises."""
        text, spans = self.template.with_answers(messages, tools)
        if self.template.marked:
            return text, spans
        return text, [self._without_space_behind(text, span) for span in spans]

    def encode(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> tuple[list[int], list[bool]]:
        """Ids of a whole conversation, and for each whether it is of an answer. UserError when the template raises."""
        return self.encoder.encode(*self.answers(messages, tools))

    def _without_space_behind(self, text: str, span: Span) -> Span:
        """White space behind an end-of-turn token is how the template continues, not a part of the answer."""
        start, end = span
        kept = len(text[start:end].rstrip())
        ends = any(text.endswith(special, start, start + kept) for special in self.encoder.specials)
        return (start, start + kept) if ends else span

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids from which the model answers the conversation's last message."""
        return self.encoder.encode(self.template.render(messages, add_generation_prompt=True), [])[0]

    def ends(self) -> set[int]:
        """The ids that end an answer: the tokenizer's end of text, and a template's own end of turn."""
        names = {self.encoder.variables.get("eos_token"), self.answer_end()}
        return {self.encoder.specials[name] for name in names if name in self.encoder.specials}

    def answer_end(self) -> str | None:
        """The special token that the template writes behind an answer, if it does."""
        ids, trained = self.encode([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        last = [number for number, mine in zip(ids, trained, strict=True) if mine][-1:]
        return next((name for name, number in self.encoder.specials.items() if [number] == last), None)


def _hugging_face(model: str) -> tuple[Encoder, str | None]:
    tokenizer = TokenizerChoice("HuggingFaceTokenizer", Path(model)).transformers_tokenizer()
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    return HuggingFaceEncoder(tokenizer), own


def chat_format_of(
    tokenizer_type: str | None, model: str | None, vocabulary: int | None, template: str | None
) -> ChatFormat:
    """The format for training's arguments ``--tokenizer-type``, ``--tokenizer-model``, ``--vocab-size``.

    template: a built-in name or a file; None is the tokenizer's own, or ``plain`` for a tokenizer that cannot have one.
    UserError for a tokenizer that reads no text, or that could have a template and has none.
    """
    own: str | None = None
    if tokenizer_type == "HuggingFaceTokenizer":
        if not model or not Path(model).exists():
            raise UserError(f"--tokenizer-model {model}: HuggingFaceTokenizer needs a folder with tokenizer.json")
        encoder, own = _hugging_face(model)
        if own is None and template is None:
            raise UserError(f"the tokenizer in {model} has no chat template; give --chat-template FILE, or {PLAIN}")
    elif tokenizer_type in _SENTENCEPIECE:
        if not model or not Path(model).is_file():
            raise UserError(f"--tokenizer-model {model}: {tokenizer_type} needs a SentencePiece .model file")
        encoder = SentencePieceEncoder(Path(model))
    elif tokenizer_type == "NullTokenizer" and vocabulary == BYTE_VOCABULARY:
        encoder = ByteEncoder()
    else:
        known = ", ".join(("HuggingFaceTokenizer", *_SENTENCEPIECE))
        raise UserError(
            f"--tokenizer-type {tokenizer_type} reads no text; give {known}, or NullTokenizer with --vocab-size "
            f"{BYTE_VOCABULARY} for bytes"
        )
    return ChatFormat(encoder, read_template(template) if template else own or read_template(PLAIN))
