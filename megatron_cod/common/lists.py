"""Lists in messages, and tables of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from megatron_cod.errors import UserError


def listed(items: Iterable[object], most: int = 8, separator: str = ", ") -> str:
    """The first ``most`` items, and how many more there are: "a, b and 3 more", or "a; b; and 3 more"."""
    found = [str(item) for item in items]
    more = len(found) - most
    before = "" if separator == ", " else separator.rstrip()
    return separator.join(found[:most]) + (f"{before} and {more:,} more" if more > 0 else "")


def flags_set(features: Mapping[str, object]) -> list[str]:
    """The flags whose value is true."""
    return [flag for flag, is_set in features.items() if is_set]


def refuse_set(features: Mapping[str, object], what: str, hint: str = "") -> None:
    """UserError "WHAT FLAGS; HINT" where any of these flags is set."""
    refused = flags_set(features)
    if refused:
        raise UserError(f"{what} {', '.join(refused)}{f'; {hint}' if hint else ''}")


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of columns as wide as their cells need, the first ``left`` of them flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


class _Sized(Protocol):
    @property
    def bytes(self) -> int: ...


def groups_of_bytes[T: _Sized](items: Iterable[T], limit: int) -> list[list[T]]:
    """Consecutive items of at most ``limit`` bytes together; a larger one is alone."""
    found: list[list[T]] = []
    size = 0
    for item in items:
        if not found or size + item.bytes > limit:
            found.append([])
            size = 0
        found[-1].append(item)
        size += item.bytes
    return found
