"""Lists in messages, tables, and groups by size."""

import re
from dataclasses import dataclass

import pytest

from megatron_cod.common.lists import aligned, flags_set, groups_of_bytes, listed, refuse_set
from megatron_cod.errors import UserError


@pytest.mark.parametrize(
    "items, most, separator, text",
    [
        ([], 2, ", ", ""),
        ([1, 2], 2, ", ", "1, 2"),
        ([1, 2, 3], 2, ", ", "1, 2 and 1 more"),
        ("abcd", 2, "; ", "a; b; and 2 more"),
        (range(2000), 1, ", ", "0 and 1,999 more"),
    ],
)
def test_lists_the_first_and_counts_the_rest(items, most, separator, text):
    assert listed(items, most, separator) == text


def test_aligns_columns():
    rows = [("a", "b", "c"), ("long", "22", ""), ("", "3", "x")]
    assert aligned(rows) == ["a      b  c", "long  22", "       3  x"]
    assert aligned(rows, left=2) == ["a     b   c", "long  22", "      3   x"]
    assert aligned(rows, left=0)[0] == "   a   b  c"


def test_refuses_flags_that_are_set():
    features = {"--a": 0, "--b": True, "--c": [1], "--d": None}
    assert flags_set(features) == ["--b", "--c"]
    with pytest.raises(UserError, match=re.escape("this does not support --b, --c; omit them")):
        refuse_set(features, "this does not support", "omit them")
    refuse_set({"--a": False}, "this does not support")


@dataclass
class Piece:
    bytes: int


def test_groups_hold_at_most_the_limit_and_larger_items_are_alone():
    sizes = [3, 3, 4, 20, 1, 9, 1]
    groups = groups_of_bytes([Piece(size) for size in sizes], 10)
    assert [[one.bytes for one in group] for group in groups] == [[3, 3, 4], [20], [1, 9], [1]]
    assert groups_of_bytes([], 10) == []
