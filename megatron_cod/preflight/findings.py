"""The findings of a check about a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OK, WARN, FAIL, SKIP = "OK", "WARN", "FAIL", "-"
_ORDER = (SKIP, OK, WARN, FAIL)


@dataclass(frozen=True)
class Finding:
    """One cell of the table, and the line below it with the detail."""

    node: str
    check: str
    state: str
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a check found: a cell for each node that it is about, a line of figures, and those for programs."""

    findings: list[Finding]
    line: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


def worst(states: list[str]) -> str:
    """The gravest of several states."""
    return max(states, key=_ORDER.index, default=SKIP)
