"""Byte-level BPE of ASCII text, whose pieces are found here: the tokenizer has only to merge them.

Splitting a text into pieces is most of what a Hugging Face tokenizer does for new words. Its regular expressions consist of
a few alternatives (`word_boundaries.py`). Python's `re` reads them the same way where letters, digits and white space are
ASCII and there are no other control characters. Any other text goes to the tokenizer, and so does a text with a character
that no alternative matches, which the tokenizer would keep.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from megatron_cod.data.tokenizers import word_boundaries

_OF_BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel with `use_regex` splits by, GPT-2's."""
_CLASSES = {"L": "A-Za-z", "N": "0-9", "Lu": "A-Z", "Ll": "a-z", "Lt": "", "Lm": "", "Lo": "", "M": ""}
_SPACES = "\t\n\v\f\r "
_OTHER = re.compile(f"[^{_SPACES}!-~]")


def ascii_pattern(definition: dict[str, Any]) -> str | None:
    """What the pieces of ASCII text match, for Python's `re`; None when the pieces are found in other ways.

    definition: the content of a tokenizer.json that `cuts.is_safe_byte_level`.
    """
    steps = word_boundaries.steps_of(definition.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0]["use_regex"]:
        pattern = _OF_BYTE_LEVEL
    elif kinds == ["Split", "ByteLevel"] and not steps[1]["use_regex"]:
        pattern = steps[0]["pattern"]["Regex"]
    else:
        return None
    outside_brackets = re.sub(r"\[[^\]]*\]|\\p\{\w+\}", lambda found: _in_brackets(found[0]), pattern)
    return re.sub(r"\\p\{(\w+)\}", lambda found: _CLASSES[found[1]], outside_brackets)


def _in_brackets(text: str) -> str:
    return text if text.startswith("[") else f"[{text}]"


class AsciiBpe:
    """Texts -> ids, or None for those that are left to the tokenizer. Nothing is put before or after a text."""

    def __init__(self, definition: dict[str, Any], pattern: str) -> None:
        from tokenizers import Tokenizer

        # NFC leaves ASCII as it is; added tokens are not in the request.
        bare = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "truncation", "padding"))
        self._tokenizer = Tokenizer.from_str(json.dumps({**definition, **bare, "added_tokens": []}))
        self._find = re.compile(pattern).findall
        vocabulary = definition["model"]["vocab"]
        # Byte-level tokens have a sign for each byte.
        self._bytes = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
        self._bytes[list(vocabulary.values())] = [len(token) for token in vocabulary]

    def one(self, text: str) -> Sequence[int] | None:
        pieces = self._pieces(text)
        return None if pieces is None else self._merged(pieces)

    def several(self, texts: Sequence[str]) -> tuple[Sequence[int], np.ndarray] | None:
        """Their ids one after the other, and how many are each text's; None where one of the texts would be None."""
        found = [self._pieces(text) for text in texts]
        pieces = [each for each in found if each is not None]
        if len(pieces) < len(found):
            return None
        ids = self._merged(list(chain.from_iterable(pieces)))
        ends, text_ends = np.cumsum(self._bytes[ids]), np.cumsum([len(text) for text in texts])
        last = np.searchsorted(ends, text_ends)
        if last[-1] == len(ends) or not np.array_equal(ends[last], text_ends):
            return None  # a vocabulary without some byte
        return ids, np.diff(last + 1, prepend=0)

    def _pieces(self, text: str) -> list[str] | None:
        if not text.isascii() or _OTHER.search(text):
            return None
        pieces: list[str] = self._find(text)
        return pieces if sum(map(len, pieces)) == len(text) else None

    def _merged(self, pieces: list[str]) -> list[int]:
        text = "\0".join(pieces)
        for space in _SPACES:
            text = text.replace(space, chr(0x100 + ord(space)))  # as byte-level vocabularies write it
        signs = [text.split("\0")]
        found = self._tokenizer.encode_batch_fast(signs, is_pretokenized=True, add_special_tokens=False)
        return found[0].ids
