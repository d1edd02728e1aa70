"""A row of the tables of flags that need a condition, in ``void.py`` and ``conditions.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Void:
    """A row: flags that act only where ``acts`` is true."""

    names: str
    """Arguments, with a space between; a star matches any end."""
    acts: Callable[[Any], object]
    why: str
    """Follows "FLAG does nothing"."""
    refused: bool = False
    training: bool = False
    """Only where a program trains."""
    but: str = ""
    """Arguments that a star takes in and that do not belong to the row."""
    typed: bool = False
    """Only where the command line names the flag: recipes have it beside what makes it void."""

    def has(self, name: str) -> bool:
        """Whether an argument belongs to the row."""
        return _matches(name, self.names) and not _matches(name, self.but)


def _matches(name: str, patterns: str) -> bool:
    exact, starts = _split(patterns)
    return name in exact or name.startswith(starts)


@cache
def _split(patterns: str) -> tuple[frozenset[str], tuple[str, ...]]:
    words = patterns.split()
    return frozenset(words), tuple(word[:-1] for word in words if word.endswith("*"))


def never(_: Any) -> bool:
    """The condition of flags that no program of the package reads."""
    return False


GONE = "in Megatron-Core 0.19.2: no code reads it"
DEPRECATED = "any more: it is a deprecated flag of Megatron's"
