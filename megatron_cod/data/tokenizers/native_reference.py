"""Ids of a converted tokenizer, compared with those of the library that the file is for."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_cod.data.tokenizers.tiktoken_encodings import Encoding
from megatron_cod.errors import UserError

_TEXTS = 200
_ALPHABET = (
    "aZ09 .,'\"\n\r\t/-_\u00a0\u00e9\u00df\u0301\u0416\u4e2d\u3042\u0e01\ud55c\u0661\u2028\U0001f600\u200d\ufeff"
)
"""Of random texts: letters, digits, spaces and marks of many kinds."""


def probe_texts(tokenizer: Any) -> list[str]:
    """Random texts of characters that splitting patterns tell apart, and random rows of the tokenizer's own tokens."""
    chosen = random.Random(20)
    noise = ["".join(chosen.choices(_ALPHABET, k=chosen.randint(1, 40))) for _ in range(_TEXTS)]
    plain = sorted(set(range(len(tokenizer))) - set(tokenizer.added_tokens_decoder))
    rows = [tokenizer.decode(chosen.choices(plain, k=chosen.randint(1, 40))) for _ in range(_TEXTS)]
    return ["It's I'LL we've 12345 x\r\n\r\n  y ", *noise, *rows]


def compare_tekken(path: Path, tokenizer: Any) -> str:
    """A line for the log; UserError where an id is not mistral-common's, with its BOS and without."""
    if importlib.util.find_spec("mistral_common") is None:
        return "its ids were not compared with mistral-common's, which is not installed"
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    theirs = Tekkenizer.from_file(path)
    for begins in (True, False):

        def ours(text: str, begins: bool = begins) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=begins)

        def mistrals(text: str, begins: bool = begins) -> list[int]:
            return theirs.encode(text, begins, False)

        _compare(path, tokenizer, ours, mistrals)
    return "its ids of some texts are mistral-common's"


def compare_tiktoken(path: Path, ranks: Mapping[bytes, int], encoding: Encoding, tokenizer: Any) -> str:
    """A line for the log; UserError where an id is not tiktoken's."""
    import tiktoken

    theirs = tiktoken.Encoding(
        path.stem, pat_str=encoding.pattern, mergeable_ranks=dict(ranks), special_tokens=dict(encoding.special)
    )
    _compare(path, tokenizer, tokenizer.encode, theirs.encode_ordinary)
    return "its ids of some texts are tiktoken's"


_Encode = Callable[[str], Sequence[int]]


def _compare(path: Path, tokenizer: Any, ours: _Encode, theirs: _Encode) -> None:
    for text in probe_texts(tokenizer):
        found, expected = list(ours(text)), list(theirs(text))
        if found != expected:
            at = next((n for n, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), 0)
            raise UserError(
                f"{path} is not converted: a text that begins {text[:40]!r} gets {found[at : at + 4]} at token {at}, and "
                f"{expected[at : at + 4]} by its own library"
            )
