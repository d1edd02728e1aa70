"""Where a text can be divided into words without changing its tokens, by the tokenizer's definitions.

SentencePiece, and Hugging Face tokenizers made like it, write a space as a mark and merge pieces over the whole text.
No piece of the vocabulary has the mark behind another character, as long as the model was trained without pieces over
several words: then no merge and no token reaches over a mark, and what is merged on one side depends on that side
alone. This holds for BPE. A unigram model adds up scores along the whole text in single precision, and two splits of a
word that are equally likely differ only by rounding: it stays whole.

Byte-level BPE first splits the text by a regular expression. Where none of its alternatives can match a space behind
something else than white space, a match ends before such a space, and the next begins at it. Looking ahead is done in
one place only, behind white space. So the words' pieces are the text's pieces. The same holds behind a line end that
is alone between other characters, but for one alternative that continues with a slash.

Hugging Face's form of T5's tokenizer splits at white space first and throws it away, so a word's tokens depend on nothing
else, for unigram models too. What could reach over a space is the normalisation before that, which maps graphemes: a space
can be in one with a combining sign. Texts with such a grapheme are kept whole.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

SPACE_MARK = "\u2581"
BYTE_LEVEL_SPACE = "\u0120"

# Alternatives that cannot match a space behind something else than white space. GPT-2's, GPT-4's, o200k's, and those of
# the models after them are made of these.
_SAFE_ALTERNATIVES = frozenset(
    [
        *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d"),
        *("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)"),
        *(r" ?\p{L}+", r" ?\p{N}+", r"\p{N}", r"\p{N}{1,3}", r"\p{N}{1,2}", r"\p{N}+"),
        *(r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?+\p{L}+"),
        *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"),
        *(r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+"),
        *(
            rf"[^\r\n\p{{L}}\p{{N}}]?{first}{second}{ending}"
            for ending in ("", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?")
            for first, second in (
                (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"),
                (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"),
            )
        ),
    ]
)

# Kinds of characters, as the inside of a regular expression's brackets.
_LETTERS, _DIGITS, _PUNCTUATION, _LINE_END = "A-Za-z", "0-9", r"!-/:-@\[-`{-~", r"\n"
_KINDS = (_LETTERS, _DIGITS, _PUNCTUATION, _LINE_END)

# The parts of a word. A word that is more than these parts is not cut.
_END_OF_LINE = r"(?:\n(?=[^\s/]|\Z))"
PARTS_OF_BYTE_LEVEL = re.compile(
    f"(?:[{_DIGITS}]+|[{_PUNCTUATION}]*[{_LETTERS}]+)(?:'[{_PUNCTUATION}]*[{_LETTERS}]+)*"
    f"(?:'[{_PUNCTUATION}]*{_END_OF_LINE}?)?|[{_PUNCTUATION}]+{_END_OF_LINE}?|{_END_OF_LINE}"
)
_PARTS_OF_PIECES = re.compile("|".join(f"[{kind}]+" for kind in _KINDS))


def pieces_end_before_marks(pieces: Iterable[str]) -> bool:
    """Whether no piece of a vocabulary has a space or its mark behind another character, and the mark is a piece
    itself.

    Without that last, unknown characters on both sides of a mark would become one unknown token together with it.
    """
    known = set(pieces)
    over_words = re.compile(f"[^{SPACE_MARK}]{SPACE_MARK}")
    return SPACE_MARK in known and not any(" " in piece or over_words.search(piece) for piece in known)


def parts_of_pieces(pieces: Iterable[str], byte_fallback: bool) -> re.Pattern[str] | None:
    """Cuts between letters, digits, punctuation and line ends, where no piece of the vocabulary has two of them beside
    each other. Needs byte fallback: neighbouring unknown characters would become one token."""
    beside = [f"[{left}][{right}]" for left in _KINDS for right in _KINDS if left != right]
    return _PARTS_OF_PIECES if byte_fallback and not re.search("|".join(beside), "\0".join(pieces)) else None


def is_safe_byte_level(definition: dict[str, Any]) -> bool:
    """Whether a Hugging Face tokenizer (the content of its tokenizer.json) can be cut before spaces."""
    steps = steps_of(definition.get("pre_tokenizer"), "pretokenizers")
    model, normalizer = definition["model"], definition.get("normalizer")
    return (
        model["type"] == "BPE"
        and not model.get("dropout")
        # NFC composes no character with a space.
        and (normalizer is None or normalizer["type"] == "NFC")
        and bool(steps)
        and all(_is_safe_step(step) for step in steps)
        and any(step["type"] == "Split" or step.get("use_regex") for step in steps)
    )


def steps_of(definition: dict[str, Any] | None, several: str) -> list[dict[str, Any]]:
    """The steps of a part of a tokenizer.json, which is one step, several under this name, or none."""
    if definition is None:
        return []
    return definition[several] if definition["type"] == "Sequence" else [definition]


def _is_safe_step(step: dict[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return not step["add_prefix_space"]
    if step["type"] == "Split":
        pattern = step["pattern"].get("Regex")
        whole = step["behavior"] == "Isolated" and not step["invert"]
        return whole and pattern is not None and set(_alternatives(pattern)) <= _SAFE_ALTERNATIVES
    return step["type"] == "Digits"


def _alternatives(pattern: str) -> list[str]:
    """A regular expression cut at its outermost bars."""
    found, depth, within_class, escaped = [""], 0, False, False
    for character in pattern:
        if not (escaped or within_class):
            depth += (character == "(") - (character == ")")
        if character == "|" and not (depth or within_class or escaped):
            found.append("")
            continue
        if not escaped:
            within_class = (within_class or character == "[") and character != "]"
        escaped = character == "\\" and not escaped
        found[-1] += character
    return found


def merged(merges: Iterable[Any]) -> set[str]:
    """The pieces that a tokenizer.json's merges make; a merge is a pair, or in older files both parts with a space
    between."""
    return {"".join(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in merges}


def marks_spaces(definition: dict[str, Any]) -> str | None:
    """How a Hugging Face tokenizer that marks spaces as SentencePiece does begins a text: with the mark, or with "";
    None for one of another kind, or with pieces over several words."""
    model, normalizer, steps = definition["model"], definition.get("normalizer"), definition.get("pre_tokenizer")
    if model["type"] != "BPE" or model.get("dropout"):
        return None
    if SPACE_MARK not in model["vocab"] or not pieces_end_before_marks({SPACE_MARK} | merged(model["merges"])):
        return None
    if normalizer is None and steps is not None and steps["type"] == "Metaspace" and steps["replacement"] == SPACE_MARK:
        return "" if steps["prepend_scheme"] == "never" else SPACE_MARK
    kinds = [
        (step["type"], step.get("prepend"), step.get("pattern"), step.get("content"))
        for step in steps_of(normalizer, "normalizers")
    ]
    prepend = ("Prepend", SPACE_MARK, None, None)
    replace = ("Replace", None, {"String": " "}, SPACE_MARK)
    if steps is None and kinds in ([prepend, replace], [replace]):
        return SPACE_MARK if prepend in kinds else ""
    return None


def splits_at_white_space(definition: dict[str, Any], normalized: Callable[[str], str]) -> bool:
    """Whether a Hugging Face tokenizer is like T5's: a unigram model of words between white space, each with a mark in
    front. normalized: what its normalizer, made for SentencePiece's, makes of a text."""
    model, normalizer = definition["model"], definition.get("normalizer")
    steps = steps_of(definition.get("pre_tokenizer"), "pretokenizers")
    return (
        model["type"] == "Unigram"
        and not model.get("alpha")
        and any(piece == SPACE_MARK for piece, _ in model["vocab"])
        and [step["type"] for step in steps] == ["WhitespaceSplit", "Metaspace"]
        and steps[1]["replacement"] == SPACE_MARK
        and steps[1]["prepend_scheme"] == "always"
        and (normalizer is None or normalizer["type"] == "Precompiled")
        and all(len(normalized(f"a{space}b").split()) == 2 for space in (" ", "\n", "\r\n"))
        # Then a word of these characters stays one: what `WordByWord` tokenizes together.
        and all(len(text.split()) == 1 and SPACE_MARK not in text for text in map(normalized, map(chr, range(33, 127))))
    )


def any_of(texts: Iterable[str]) -> list[str]:
    """Regular expressions that find each of these texts, one for each first character: Python tries them in turn."""
    rests: dict[str, list[str]] = {}
    for text in texts:
        rests.setdefault(text[0], []).append(re.escape(text[1:]))
    return [f"{re.escape(first)}(?:{'|'.join(several)})" for first, several in rests.items()]


@cache
def graphemes_with_a_space() -> str:
    """A regular expression that finds each space that may be part of a larger grapheme, in any version of Unicode."""
    # Signs that extend what is before them (some of them letters), and those that what is behind them belongs to.
    extend, prepend = "\u0e33\u0eb3\uff9e\uff9f", "\u0d4e"
    for code in range(128, sys.maxunicode + 1):
        character = chr(code)
        category = unicodedata.category(character)
        if category in ("Mn", "Me", "Mc", "Cf", "Sk", "Cn"):
            extend += character
        # Letters of this kind are in the Brahmic scripts beyond 0x11000, of which all are taken.
        if category in ("Cf", "Cn") or (category == "Lo" and 0x11000 <= code < 0x12000):
            prepend += character
    # Quick where there is ASCII on both sides.
    ascii_only = "\\x00-\\x7f"
    return f" (?:(?=[^{ascii_only}])[{_ranges(extend)}]|(?<=[^{ascii_only}] )(?<=[{_ranges(prepend)}] ))"


def _ranges(characters: str) -> str:
    """The inside of a regular expression's brackets."""
    found: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in found)
