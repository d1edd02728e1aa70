"""Numbers in flags."""

import math
from argparse import ArgumentTypeError

import pytest

from megatron_cod.common.amounts import format_duration, tokens_text
from megatron_cod.common.numbers import at_least, count, not_negative, number_or_nan, parse_count, share
from megatron_cod.errors import UserError

REFUSED = [
    *((at_least(1), text) for text in ("0", "-1", "x", "", "1.0", "\u00b2", "\u0663")),
    *((not_negative, text) for text in ("-1", "nan", "inf", "x", "")),
    *((share, text) for text in ("0", "1", "1.5", "nan", "x")),
    *((count, text) for text in ("0", "many", "1.5", "nan", "K", "")),
]


@pytest.mark.parametrize("kind, text", REFUSED)
def test_refuses_text_outside_the_range(kind, text):
    with pytest.raises(ArgumentTypeError) as refused:
        kind(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(
    "kind, text, value",
    [
        (at_least(1), "1", 1),
        (at_least(0), "0", 0),
        (not_negative, "0", 0.0),
        (share, "0.5", 0.5),
        (count, "2.5k", 2500),
    ],
)
def test_accepts_text_in_the_range(kind, text, value):
    assert kind(text) == value and type(kind(text)) is type(value)


def test_text_that_is_no_number_is_in_no_range():
    value = number_or_nan("soon")
    assert math.isnan(value) and not value > 0 and not value <= 0


def test_amounts_in_text_are_parsed_back():
    for tokens in (820, 52_400, 1_310_000_000):
        assert parse_count(tokens_text(tokens)) == tokens
    with pytest.raises(UserError, match="many"):
        parse_count("many")


@pytest.mark.parametrize("seconds, text", [(-1, "0:00"), (59.6, "1:00"), (3600, "1:00:00"), (90061, "25:01:01")])
def test_durations_have_hours_from_one_hour(seconds, text):
    assert format_duration(seconds) == text
