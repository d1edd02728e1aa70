"""Hugging Face tokenizers as Megatron builds them, without Megatron and transformers in the process that tokenizes."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from megatron_cod.data.tokenizers import word_boundaries
from megatron_cod.data.tokenizers.ascii_bpe import AsciiBpe, ascii_pattern
from megatron_cod.data.tokenizers.choice import TokenizerChoice
from megatron_cod.data.tokenizers.word_cache import Cutting, Ids, Library, one_after_the_other


@dataclass(frozen=True)
class _Shape:
    """What a `Cutting` is made of; `definition` is that of a tokenizer for parts of a text, None for the same one.
    `ascii`: what pieces of ASCII match, where `AsciiBpe` may have the parts."""

    mark: str
    head: str
    begins: np.ndarray
    parts: re.Pattern[str] | None
    whole: re.Pattern[str] | None
    before: Sequence[int]
    after: Sequence[int]
    definition: str | None
    only_words: bool
    ascii: str | None


@dataclass(frozen=True)
class _Description:
    """What Megatron makes of a folder: `definition` is the content of a tokenizer.json, None for a tokenizer that has none
    because it is written in Python."""

    vocab_size: int
    eod: int | None
    definition: str | None = None
    shape: _Shape | None = None


def load_huggingface(choice: TokenizerChoice) -> Library:
    """Raises UserError when the folder cannot be used."""
    assert choice.model is not None
    folder = choice.model if choice.model.is_dir() else choice.model.parent
    about = _described(choice, tuple(sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())))
    if about.definition is None:
        return Library(about.vocab_size, about.eod, choice.build().tokenize)
    # Processes work beside each other already; tokenizers warns of a fork once it has started threads.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer, special, cutting = _from_definition(about.definition), choice.hf_special_tokens, None
    if (shape := about.shape) is not None:
        of_parts = tokenizer if shape.definition is None else _from_definition(shape.definition)
        quick = None if shape.ascii is None else AsciiBpe(json.loads(about.definition), shape.ascii)
        parts = _OfParts(of_parts, quick)
        cutting = Cutting(
            mark=shape.mark,
            head=shape.head,
            one=parts.one,
            several=parts.several,
            begins=shape.begins,
            parts=shape.parts,
            whole=shape.whole,
            before=shape.before,
            after=shape.after,
            only_words=shape.only_words,
        )
    return Library(
        about.vocab_size, about.eod, lambda text: tokenizer.encode(text, add_special_tokens=special).ids, cutting
    )


@dataclass(frozen=True)
class _OfParts:
    """Parts of texts -> ids, the quick way where there is one."""

    tokenizer: Any
    quick: AsciiBpe | None

    def one(self, part: str) -> Ids:
        ids = None if self.quick is None else self.quick.one(part)
        return self._encoded([part])[0] if ids is None else ids

    def several(self, parts: list[str]) -> tuple[Ids, Sequence[int] | np.ndarray]:
        found = None if self.quick is None else self.quick.several(parts)
        return one_after_the_other(self._encoded(parts)) if found is None else found

    def _encoded(self, parts: list[str]) -> list[Ids]:
        return [found.ids for found in self.tokenizer.encode_batch_fast(parts, add_special_tokens=False)]


@lru_cache(maxsize=8)
def _described(choice: TokenizerChoice, _times_of_change: tuple[tuple[str, int], ...]) -> _Description:
    """In a process of its own: Megatron and transformers take 900 MB, and tokenizing needs neither."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as process:
        return process.submit(_describe, choice).result()


def _describe(choice: TokenizerChoice) -> _Description:
    tokenizer = choice.build()
    inner = tokenizer._tokenizer.tokenizer
    backend = getattr(inner, "backend_tokenizer", None)
    size, eod = int(tokenizer.vocab_size), tokenizer.eod
    if backend is None or getattr(inner, "split_special_tokens", False):
        return _Description(size, eod)
    definition = backend.to_str()
    shape = _shape(json.loads(definition), _from_definition(definition), choice.hf_special_tokens)
    return _Description(size, eod, definition, shape)


def _from_definition(definition: str) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(definition)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _shape(definition: dict[str, Any], tokenizer: Any, special: bool) -> _Shape | None:
    """special: whether the tokenizer puts its tokens around a text."""
    added = [token["content"] for token in definition["added_tokens"]]
    if any(re.search(r"\s", content) for content in added):
        return None
    # An added token, such as <s>, is found before all else.
    left_whole = word_boundaries.any_of(filter(None, added))
    mark, head, begin, of_parts, plain = " ", "", word_boundaries.BYTE_LEVEL_SPACE, None, None
    parts: re.Pattern[str] | None = word_boundaries.PARTS_OF_BYTE_LEVEL
    only_words = word_boundaries.splits_at_white_space(definition, _normalization(tokenizer))
    if only_words:
        head, begin, parts = " ", word_boundaries.SPACE_MARK, None
        left_whole.append(word_boundaries.graphemes_with_a_space())
    elif word_boundaries.is_safe_byte_level(definition):
        plain = ascii_pattern(definition)
    else:
        marked = word_boundaries.marks_spaces(definition)
        if marked is None:
            return None
        mark, head, begin = word_boundaries.SPACE_MARK, marked, word_boundaries.SPACE_MARK
        if definition["pre_tokenizer"] is not None:
            left_whole.append(r"\A ")  # Metaspace puts no mark before a text that begins with one
        model = definition["model"]
        parts = word_boundaries.parts_of_pieces(word_boundaries.merged(model["merges"]), bool(model["byte_fallback"]))
        of_parts = json.dumps({**definition, "normalizer": None, "pre_tokenizer": None})
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    begins = np.zeros(max(vocabulary.values()) + 1, dtype=bool)
    begins[[number for piece, number in vocabulary.items() if piece.startswith(begin)]] = True
    before, after = _around(tokenizer) if special else ([], [])
    whole = re.compile("|".join(left_whole)) if left_whole else None
    return _Shape(mark, head, begins, parts, whole, before, after, of_parts, only_words, plain)


def _normalization(tokenizer: Any) -> Callable[[str], str]:
    return str if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer puts before and after the ids of a text."""
    with_them = tokenizer.encode("a", add_special_tokens=True).ids
    without = tokenizer.encode("a", add_special_tokens=False).ids
    for start in range(len(with_them) - len(without) + 1):
        if with_them[start : start + len(without)] == without:
            return with_them[:start], with_them[start + len(without) :]
    raise AssertionError(f"special tokens within a text: {with_them} {without}")
