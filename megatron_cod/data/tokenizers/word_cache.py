"""Tokenize text word by word with a memory of the words, where that is proven to give the tokens of the whole text.

Text repeats its words, and a tokenizer spends most of its time on known words. A word here is the text between two
boundaries. A boundary is before a space that follows a character other than white space, and only for tokenizers none of
whose tokens cross it (`word_boundaries.py` decides which these are, and why). A new word is divided further
where possible, and its parts are searched. What is still unknown is tokenized in one call, as a text made of words: by the
same proof, a token that begins with a space is where the next word begins.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import numpy as np

Ids = Sequence[int] | np.ndarray

# In byte-level text, a single line end: behind it text begins again. Elsewhere line ends are words of their own.
_LINE_OF_BYTE_LEVEL = re.compile(r"\n(?<=\S\n)(?=[^\s/])")

# A longer word is unlikely to come again. So many words take about 100 MB; those before them are remembered too. Half as
# many make a mixed corpus of 120 MB a fifth slower.
_LONGEST_WORD = 64
_MOST_WORDS = 1 << 19
# A longer text is worked through in pieces of this many characters, each up to the next cut.
_WINDOW = 1 << 20
# Begins a word that has no space in front of it. A text with this character is left whole.
_BARE = "\x01"


@dataclass(frozen=True)
class Cutting:
    """How the words of a text are tokenized.

    mark: what represents a space in the parts that `one` and `several` get, " " itself or a sign. head: what the
    tokenizer puts before a text, the mark or nothing. one: the ids of a part of a text, nothing added before or after.
    several: the ids of several parts one after the other, and how many are each part's. begins [vocabulary]: whether an
    id's text begins with the mark. parts: finds the parts of a word where it can be cut further. whole: found in a text
    that must be tokenized whole. before, after: the ids put around a text. only_words: white space gives no token and does
    nothing but end a word, wherever it stands; needs " " for mark and head.
    """

    mark: str
    head: str
    one: Callable[[str], Ids]
    several: Callable[[list[str]], tuple[Ids, Sequence[int] | np.ndarray]]
    begins: np.ndarray
    parts: re.Pattern[str] | None = None
    whole: re.Pattern[str] | None = None
    before: Sequence[int] = ()
    after: Sequence[int] = ()
    only_words: bool = False


def one_after_the_other(found: Sequence[Ids]) -> tuple[list[int], list[int]]:
    """What `Cutting.several` gives, of the ids of each part."""
    return list(chain.from_iterable(found)), list(map(len, found))


@dataclass(frozen=True)
class Library:
    """A tokenizer as Megatron's training has it: ids are below `vocab_size`, `eod` is None where there is none,
    `whole` gives the ids of a text. `cutting` is None where the words of a text do not give its ids."""

    vocab_size: int
    eod: int | None
    whole: Callable[[str], Ids]
    cutting: Cutting | None = None


class _Memory(dict[str, bytes | bytearray]):
    """Word -> its tokens. An unknown one gets an empty array, to be filled by `learn`."""

    def __init__(self) -> None:
        self.unknown: list[str] = []
        self._older: dict[str, bytes | bytearray] = {}
        self._passing: list[str] = []

    def __missing__(self, word: str) -> bytes | bytearray:
        tokens = self._older.get(word)
        if tokens is None:
            tokens = bytearray()
            self.unknown.append(word)
            if len(word) > _LONGEST_WORD:
                self._passing.append(word)
        self[word] = tokens
        return tokens

    def learn(self, word: str, tokens: bytes) -> None:
        """Those who requested it before have it too."""
        slot = self[word]
        slot += tokens
        self[word] = tokens

    def forget_some(self) -> None:
        """Forget long words, and when full the words that have not been met since it was full the last time."""
        for word in self._passing:
            self.pop(word, None)
        self._passing.clear()
        if len(self) >= _MOST_WORDS:
            self._older = dict(self)
            self.clear()


class WordByWord:
    """Texts -> their tokens, as `pack` makes bytes of ids."""

    def __init__(self, cutting: Cutting, pack: Callable[[Ids], bytes]) -> None:
        self._how, self._pack, mark = cutting, pack, cutting.mark
        self._size = len(pack([0]))
        self._words = _Memory()  # without the space in front of them
        self._parts = _Memory()  # as they are
        self._before, self._after = pack(cutting.before), pack(cutting.after)
        # A space is a cut behind anything but white space; where spaces have a sign, behind anything but another one.
        self._cut = re.compile(r"(?<=\S) " if mark == " " else r"(?<=[^ ]) ")
        self._no_cut = re.compile(r" (?<=\s )" if mark == " " else r"  | \n")

    def __call__(self, texts: Sequence[str]) -> list[bytes | bytearray | None]:
        """The tokens of each text; None for one that must be tokenized whole."""
        try:
            with _without_collection():
                found = [None if self._must_be_whole(text) else self._tokens(text) for text in texts]
                self._learn()
        except BaseException:
            self.forget()  # what was to be learned must not be treated as known
            raise
        tokens = [b"".join([self._before, *ids, self._after]) if isinstance(ids, list) else ids for ids in found]
        self._forget_some()
        return tokens

    def forget(self) -> None:
        """Begin again, with empty memories."""
        self._words, self._parts = _Memory(), _Memory()

    def _forget_some(self) -> None:
        self._words.forget_some()
        self._parts.forget_some()

    def _must_be_whole(self, text: str) -> bool:
        mark, whole = self._how.mark, self._how.whole
        return _BARE in text or (mark != " " and mark in text) or (whole is not None and whole.search(text) is not None)

    def _tokens(self, text: str) -> list[bytes | bytearray] | bytearray:
        """The tokens of each word, to be filled by `_learn`; of a long text all tokens, which grow in place."""
        if len(text) <= _WINDOW:
            return self._window(text, True)
        tokens = bytearray(self._before)
        start = 0
        while start <= len(text):
            cut = self._cut.search(text, start + _WINDOW)
            end = cut.start() if cut else len(text)
            words = self._window(text[start:end], start == 0)
            self._learn()
            tokens += b"".join(words)
            self._forget_some()
            start = end + 1
        tokens += self._after
        return tokens

    def _window(self, text: str, is_first: bool) -> list[bytes | bytearray]:
        """The tokens of the words of a text, or of a piece of one that follows a space."""
        mark = self._how.mark
        if self._how.only_words:
            words = text.replace("\n", " ").split(" ")
        elif text.startswith(" ") or self._no_cut.search(text):
            words = [word.replace(" ", mark) for word in self._cut.split(text)]
        else:
            words = self._with_lines_cut(text).split(" ")
        if is_first and self._how.head != mark:
            words[0] = _BARE + words[0]
        return list(map(self._words.__getitem__, words))

    def _with_lines_cut(self, text: str) -> str:
        if self._how.mark == " ":
            return _LINE_OF_BYTE_LEVEL.sub(f"\n {_BARE}", text)
        return text if self._how.parts is None else text.replace("\n", f" {_BARE}\n {_BARE}")

    def _learn(self) -> None:
        """Tokenize what is unknown."""
        cut_up = self._cut_up()
        mark = self._how.mark
        unknown, self._words.unknown = self._words.unknown, []
        alone = set(unknown)
        for words in _ascii_first(word for word in unknown if word and self._keeps_its_cuts(word)):
            if self._learn_together(words):
                alone.difference_update(words)
        for word in alone:
            # Not behind a space where words need none: with a combining sign, it is no space.
            self._words.learn(word, self._pack(self._how.one(word if self._how.only_words else mark + word)))
        parts, self._parts.unknown = self._parts.unknown, []
        for several in filter(None, _ascii_first(parts)):
            ids, counts = self._how.several(several)
            self._learn_each(self._parts, several, self._pack(ids), np.cumsum(counts))
        for word, found in cut_up:
            self._words.learn(word, b"".join(found))

    def _keeps_its_cuts(self, word: str) -> bool:
        """Whether a word beside others is still one word: no mark, no white space at its end; nothing that a normalizer
        may make white space of, or nothing at all."""
        if self._how.only_words:
            return word.isascii() and word.isprintable()
        return self._how.mark not in word and not word[-1].isspace()

    def _cut_up(self) -> list[tuple[str, list[bytes | bytearray]]]:
        """Take out of the unknown words those that are bare or can be cut, and ask for their parts."""
        find = None if self._how.parts is None else self._how.parts.findall
        cut_up, whole = [], []
        unknown, self._words.unknown = self._words.unknown, []
        for word in unknown:
            is_bare = word.startswith(_BARE)
            text = word[1:] if is_bare else word
            parts = [text] if find is None or text.isalpha() else find(text)
            if not parts or sum(map(len, parts)) < len(text):
                parts = [text]
            if is_bare:
                cut_up.append((word, [self._parts[part] for part in parts if part]))
            elif len(parts) == 1:
                whole.append(word)
            else:
                cut_up.append((word, [self._words[parts[0]], *map(self._parts.__getitem__, parts[1:])]))
        self._words.unknown += whole
        return cut_up

    def _learn_together(self, words: list[str]) -> bool:
        """Tokenize words as a text made of them; false when the tokens do not show where words begin."""
        if not words:
            return True
        ids = np.asarray(self._how.one(self._how.mark + self._how.mark.join(words)))
        starts = np.flatnonzero(self._how.begins[ids])
        if len(starts) != len(words) or starts[0] != 0:
            return False
        self._learn_each(self._words, words, self._pack(ids), np.append(starts[1:], len(ids)))
        return True

    def _learn_each(self, memory: _Memory, words: list[str], tokens: bytes, ends: np.ndarray) -> None:
        """ends [words]: behind which token each word's end."""
        start = 0
        for word, end in zip(words, (ends * self._size).tolist(), strict=True):
            memory.learn(word, tokens[start:end])
            start = end


@contextmanager
def _without_collection() -> Iterator[None]:
    """Python's collector of cycles would go through the memories, a million words, again and again: a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _ascii_first(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """The words of ASCII, for which there may be a quicker way, and the others."""
    found: tuple[list[str], list[str]] = ([], [])
    for word in words:
        found[not word.isascii()].append(word)
    return found
