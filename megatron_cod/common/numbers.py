"""Numbers that a user gives: types for argparse, whose errors quote the text."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from megatron_cod.errors import UserError

_SUFFIXES = {"K": 3, "M": 6, "B": 9, "T": 12}
_MOST = 2**63 - 1  # what a tensor of counts holds


def number_or_nan(text: str) -> float:
    """The number; NaN, which is in no range, for any other text."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def at_least(least: int) -> Callable[[str], int]:
    """A flag's type: a whole number from ``least``, which is 0 or more."""

    def whole(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least {least}")
        return int(text)

    return whole


def not_negative(text: str) -> float:
    """A flag's type: a finite number from 0."""
    value = number_or_nan(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def share(text: str) -> float:
    """A flag's type: a number between 0 and 1."""
    value = number_or_nan(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def parse_count(text: str) -> int:
    """``250000``, ``250K``, ``2.5B``, ``1e9`` as a number of at least 1. UserError for anything else."""
    power = _SUFFIXES.get(text[-1:].upper(), 0)
    try:
        value = Decimal(text[:-1] if power else text).scaleb(power)
    except InvalidOperation:
        value = Decimal(0)
    if not value.is_finite() or value < 1 or (value < _MOST and value != int(value)):
        raise UserError(f"{text!r} is not a number of at least 1, such as 250000, 250K, 30M, 2.5B or 1T")
    if value > _MOST:
        raise UserError(f"{text[:20]!r} is too large: at most {_MOST:,}")
    return int(value)


def count(text: str) -> int:
    """A flag's type: as ``parse_count``."""
    try:
        return parse_count(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
