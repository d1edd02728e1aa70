"""Texts of documents -> their ids, as a dataset holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from megatron_cod.data.tokenizers.choice import TokenizerChoice
from megatron_cod.data.tokenizers.libraries import load_library
from megatron_cod.data.tokenizers.word_cache import Ids, WordByWord
from megatron_cod.errors import UserError

# A longer text is given to a tokenizer in pieces, each up to white space, since its memory is many times the text's.
WHOLE_CHARACTERS = 1 << 22
# Every so many texts the tokens of the words are compared with the tokenizer's own.
_COMPARE_EVERY = 512
_COMPARE_CHARACTERS = 1 << 16


class DocumentEncoder:
    """Text of one document -> its ids, with the end-of-document id if requested. The ids are those of Megatron's
    tokenizer.

    Attributes: `vocab_size` (ids are below it), `eod` (None when the tokenizer has none), `dtype` (of the dataset, by
    Megatron's rule), `by_words`: whether texts are tokenized by their words (see `word_cache`); where they are not, a
    text longer than `WHOLE_CHARACTERS` is tokenized in pieces. Raises UserError for a model that cannot be used, and
    when `append_eod` is asked of a tokenizer without an end of document.
    """

    def __init__(self, choice: TokenizerChoice, append_eod: bool, whole_texts: bool = False) -> None:
        library = load_library(choice)
        self.vocab_size, self.eod = library.vocab_size, library.eod
        if append_eod and self.eod is None:
            raise UserError(
                f"--append-eod: tokenizer {choice.model} has no end-of-sequence token, which Megatron "
                "uses as end of document; name one as eos_token in its tokenizer_config.json"
            )
        self.dtype: type[np.number] = np.uint16 if self.vocab_size < 65500 else np.int32
        self._eod = self._packed([self.eod]) if append_eod and self.eod is not None else b""
        self._whole = library.whole
        cutting = None if whole_texts else library.cutting
        self._words = None if cutting is None else WordByWord(cutting, self._packed)
        self.by_words = self._words is not None
        self._seen = 0

    def encode(self, texts: Sequence[str]) -> list[bytes | bytearray]:
        """Ids of each text as bytes of `dtype`; empty for a text that gives no token.

        A tokenizer that ends documents with its eod does not get a second one.
        """
        by_words = self._words(texts) if self._words is not None else [None] * len(texts)
        found: list[bytes | bytearray] = []
        for text, known in zip(texts, by_words, strict=True):
            tokens: bytes | bytearray = b""
            if text:
                tokens = self._by_itself(text) if known is None else known
                if known is not None and self._seen % _COMPARE_EVERY == 0 and len(text) <= _COMPARE_CHARACTERS:
                    self._compare(text, known)
                self._seen += 1
            if tokens and tokens[-len(self._eod) :] != self._eod:
                tokens += self._eod
            found.append(tokens)
        return found

    def forget(self) -> None:
        """Free the memory of words: hundreds of megabytes, which a huge document needs more."""
        if self._words is not None:
            self._words.forget()

    def __call__(self, text: str) -> np.ndarray:
        """Ids of a text [tokens] of `dtype`."""
        return np.frombuffer(self.encode([text])[0], self.dtype)

    def _compare(self, text: str, tokens: bytes | bytearray) -> None:
        if tokens != self._by_itself(text):
            raise UserError(
                f"this tokenizer's tokens of a text are not those of its words (the text begins {text[:60]!r}); "
                "give --whole-texts"
            )

    def _by_itself(self, text: str) -> bytes | bytearray:
        if len(text) <= WHOLE_CHARACTERS:
            return self._packed(self._whole(text))
        tokens = bytearray()  # grows in place, where joining pieces would take twice the memory
        for piece in _pieces(text):
            tokens += self._packed(self._whole(piece))
        return tokens

    def _packed(self, ids: Ids) -> bytes:
        ids = np.asarray(ids)
        if ids.size and not (ids.min() >= 0 and ids.max() < self.vocab_size):
            raise UserError(
                f"the tokenizer gave id {ids.max()}, but its vocabulary has {self.vocab_size} ids; its model has gaps "
                "in its numbering"
            )
        return ids.astype(self.dtype).tobytes()


def _pieces(text: str) -> Iterator[str]:
    """Pieces of at most `WHOLE_CHARACTERS`, each ended before the last space in it, where there is one."""
    start = 0
    while start < len(text):
        end = min(start + WHOLE_CHARACTERS, len(text))
        space = text.rfind(" ", start + 1, end) if end < len(text) else -1
        yield text[start : end if space < 0 else space]
        start = end if space < 0 else space
