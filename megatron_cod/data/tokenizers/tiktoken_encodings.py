"""Published encodings of tiktoken files, which hold ranks alone: how texts are split, and the special tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Encoding:
    """How a tiktoken file is to be read."""

    pattern: str
    """Splits a text, without possessive quantifiers of a range, which tokenizers' library reads otherwise."""
    special: Mapping[str, int] = field(default_factory=dict)


ENCODINGS: Mapping[str, Encoding] = {
    "r50k_base": Encoding(
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        {END_OF_TEXT: 50256},
    ),
    "cl100k_base": Encoding(
        rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
        {
            END_OF_TEXT: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": Encoding(
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        {END_OF_TEXT: 199999, "<|endofprompt|>": 200018},
    ),
    "qwen": Encoding(
        rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}",
        {
            token: 151643 + place
            for place, token in enumerate(
                [END_OF_TEXT, "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))]
            )
        },
    ),
}
"""By the name of the file, without ``.tiktoken``. ``qwen`` is that of the first Qwen. p50k_base is not here: its special
token lies between the ranks."""
