"""Text with special tokens in it -> ids, and which of them lie in given parts of it; one class a kind of tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from megatron_cod.data.chat.templates import Span
from megatron_cod.data.tokenizers.choice import BYTE_VOCABULARY
from megatron_cod.errors import UserError


class Encoder(Protocol):
    """What a chat format needs of a tokenizer."""

    variables: dict[str, str]
    """For templates: ``bos_token``, ``eos_token`` and others that it has."""
    specials: dict[str, int]
    """Text of a special token -> its id; such text in a conversation becomes that token, as in transformers."""

    def encode(self, text: str, spans: Sequence[Span]) -> tuple[list[int], list[bool]]:
        """Ids, and for each whether it lies in one of ``spans`` (in order, apart from each other)."""

    def fingerprint(self) -> bytes:
        """Other bytes for another tokenizer."""


class HuggingFaceEncoder:
    """A fast tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: with ``is_fast``; UserError otherwise, as others do not have the positions of tokens in the text."""
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(f"{type(tokenizer).__name__} has no fast version; fine-tuning needs a tokenizer.json")
        self._tokenizer = tokenizer
        self.variables = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
        added = tokenizer.added_tokens_decoder.items()
        self.specials = {token.content: int(number) for number, token in added if token.special}

    def encode(self, text: str, spans: Sequence[Span]) -> tuple[list[int], list[bool]]:
        """See ``Encoder``. A token that reaches into a span counts as in it, as in transformers' own masks."""
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        inside, place = [], 0
        for start, end in found["offset_mapping"]:
            while place < len(spans) and start >= spans[place][1]:
                place += 1
            inside.append(place < len(spans) and end > spans[place][0])
        return list(found["input_ids"]), inside

    def fingerprint(self) -> bytes:
        """See ``Encoder``."""
        return str(self._tokenizer.backend_tokenizer.to_str()).encode()


class _PieceEncoder:
    """Text cut at special tokens and at the ends of spans; each piece is encoded alone, so that no token reaches over."""

    variables: dict[str, str]
    specials: dict[str, int]

    def _ids(self, text: str, first: bool) -> list[int]:
        raise NotImplementedError

    def encode(self, text: str, spans: Sequence[Span]) -> tuple[list[int], list[bool]]:
        """See ``Encoder``."""
        ids: list[int] = []
        inside: list[bool] = []
        for start, end, trained in _cut(len(text), spans):
            for piece in _split(text[start:end], self.specials):
                found = [self.specials[piece]] if piece in self.specials else self._ids(piece, first=not ids)
                ids += found
                inside += [trained] * len(found)
        return ids, inside


def _cut(length: int, spans: Sequence[Span]) -> Iterator[tuple[int, int, bool]]:
    """[0, length) as neighbouring parts (start, end, whether a span)."""
    place = 0
    for start, end in spans:
        yield place, start, False
        yield start, end, True
        place = end
    yield place, length, False


def _split(text: str, specials: dict[str, int]) -> list[str]:
    if not specials:
        return [text] if text else []
    longest_first = sorted(specials, key=len, reverse=True)
    return [part for part in re.split(f"({'|'.join(map(re.escape, longest_first))})", text) if part]


class SentencePieceEncoder(_PieceEncoder):
    """A SentencePiece model; ``<s>`` and ``</s>``, as the model names them, are special."""

    def __init__(self, model: Path) -> None:
        """UserError for a file that is no SentencePiece model."""
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(model))
        except (RuntimeError, OSError) as error:
            raise UserError(f"cannot read tokenizer model {model}: {' '.join(str(error).split())[:200]}") from None
        numbers = {"bos_token": self._model.bos_id(), "eos_token": self._model.eos_id()}
        self.variables = {name: self._model.id_to_piece(n) for name, n in numbers.items() if n >= 0}
        self.specials = {self._model.id_to_piece(n): n for n in numbers.values() if n >= 0}

    def _ids(self, text: str, first: bool) -> list[int]:
        """first: whether the text begins here; further on there is none of the space that the model puts before a text."""
        if first:
            return list(self._model.encode(text))
        # The model has no option to omit it. A line end before the text takes it along, and nothing merges with that.
        before, both = self._model.encode("\n"), self._model.encode("\n" + text)
        return list(both[len(before) :] if before and both[: len(before)] == before else self._model.encode(text))

    def fingerprint(self) -> bytes:
        """See ``Encoder``."""
        return bytes(self._model.serialized_model_proto())


class ByteEncoder(_PieceEncoder):
    """Bytes as ids, and the end of document behind them: the training's ``NullTokenizer`` of 257."""

    variables: dict[str, str] = {"eos_token": "<eod>"}  # noqa: RUF012
    specials: dict[str, int] = {"<eod>": BYTE_VOCABULARY - 1}  # noqa: RUF012

    def _ids(self, text: str, first: bool) -> list[int]:
        return list(text.encode("utf-8"))

    def fingerprint(self) -> bytes:
        """See ``Encoder``."""
        return b"bytes"
