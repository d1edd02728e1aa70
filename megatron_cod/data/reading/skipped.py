"""Documents that cannot be read: the option that leaves them out, and what is shown of them then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

HINT = "(--skip-bad-lines leaves such documents out)"
# All are counted; so many are described.
MOST_EXAMPLES = 5


def told(examples: Sequence[str], count: int) -> Iterator[str]:
    """Lines for the user. examples: what is wrong with the first of `count` documents, each with its place."""
    for message in examples:
        yield f"  left out: {message}"
    if count > len(examples) > 0:
        yield f"  and {count - len(examples)} more"
