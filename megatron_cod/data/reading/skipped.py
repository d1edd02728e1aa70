"""Unreadable documents: the option that skips them, and the lines that report them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

HINT = "(--skip-bad-lines skips such documents)"
# All are counted; so many are described.
MOST_EXAMPLES = 5


def skipped_lines(examples: Sequence[str], count: int) -> Iterator[str]:
    """Lines for the user. examples: what is wrong with the first of `count` documents, each with its place."""
    for message in examples:
        yield f"  skipped: {message}"
    if count > len(examples) > 0:
        yield f"  and {count - len(examples)} more"
