"""For which tokenizers the tokens of a text are those of its words: where a cut changes nothing, by their definitions.

SentencePiece, and Hugging Face tokenizers made like it, write a space as a mark and merge pieces over the whole text.
No piece of the vocabulary has the mark behind another character, as long as the model was trained without pieces over
several words: then no merge and no token reaches over a mark, and what is merged on one side depends on that side
alone. This holds for BPE. A unigram model adds up scores along the whole text in single precision, and two splits of a
word that are equally likely are told apart by rounding: it is left whole.

Byte-level BPE first splits the text by a regular expression. Where none of its alternatives can match a space behind
something else than white space, a match ends before such a space, and the next begins at it. Looking ahead is done in
one place only, behind white space. So the words' pieces are the text's pieces. The same holds behind a line end that
stands alone between other characters, but for one alternative that goes on with a slash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
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
    each other. Needs byte fallback: unknown characters that stand together would become one token."""
    beside = [f"[{left}][{right}]" for left in _KINDS for right in _KINDS if left != right]
    return _PARTS_OF_PIECES if byte_fallback and not re.search("|".join(beside), "\0".join(pieces)) else None


def is_safe_byte_level(definition: dict[str, Any]) -> bool:
    """Whether a Hugging Face tokenizer (the content of its tokenizer.json) can be cut before spaces."""
    steps = _steps(definition.get("pre_tokenizer"), "pretokenizers")
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


def _steps(definition: dict[str, Any] | None, several: str) -> list[dict[str, Any]]:
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
        for step in _steps(normalizer, "normalizers")
    ]
    prepend = ("Prepend", SPACE_MARK, None, None)
    replace = ("Replace", None, {"String": " "}, SPACE_MARK)
    if steps is None and kinds in ([prepend, replace], [replace]):
        return SPACE_MARK if prepend in kinds else ""
    return None
