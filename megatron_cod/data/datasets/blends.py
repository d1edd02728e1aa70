"""Which datasets a run reads, and in what shares: read from arguments and files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cod.args import MegatronArgs
from megatron_cod.errors import UserError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Blend:
    """Datasets of one split, or of all; `weights` is None when their lengths decide. `source` is the flag, or the file and
    the key in it, that names them."""

    source: str
    prefixes: list[str]
    weights: list[float] | None

    def shares(self) -> list[float] | None:
        """The weights as shares of 1."""
        return None if self.weights is None else [weight / sum(self.weights) for weight in self.weights]


def read_blend(source: str, words: Sequence[str]) -> Blend:
    """Prefixes, or a weight before each prefix.

    Raises UserError for anything else, for weights not above 0, and for a dataset named twice.
    """
    numbers = [_number(word) for word in words]
    if not words:
        raise UserError(f"{source} names no dataset")
    if not any(number is not None for number in numbers):
        return Blend(source, _each_once(source, words), None)
    asked = f"{source} takes dataset prefixes, or a weight before each: WEIGHT PREFIX WEIGHT PREFIX ..."
    for place in range(0, len(words), 2):
        if numbers[place] is None:
            raise UserError(f"{asked}; no weight is before {words[place]!r}")
        if place + 1 == len(words):
            raise UserError(f"{asked}; no prefix follows the weight {words[place]}")
        if numbers[place + 1] is not None:
            raise UserError(
                f"{asked}; the weight {words[place]} is followed by {words[place + 1]}, a number "
                f"(a dataset with such a name is written ./{words[place + 1]})"
            )
    weights = [number for number in numbers[::2] if number is not None]
    prefixes = _each_once(source, words[1::2])
    for weight, prefix in zip(weights, prefixes, strict=True):
        if not (weight > 0 and math.isfinite(weight)):
            raise UserError(f"{source}: the weight of {prefix} must be above 0, found {weight:g}; omit it instead")
    if not math.isfinite(sum(weights)):
        raise UserError(f"{source}: the weights add up to more than a number can hold; give smaller ones")
    return Blend(source, prefixes, weights)


def _each_once(source: str, words: Sequence[str]) -> list[str]:
    prefixes = [word.strip() for word in words]
    seen: set[Path] = set()
    for prefix in prefixes:
        place = Path(prefix).resolve()
        if place in seen:
            raise UserError(f"{source} names {prefix} twice; name it once, with a weight where it is to count for more")
        seen.add(place)
    return prefixes


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def blends_of(args: MegatronArgs) -> dict[str, Blend]:
    """The blends that the arguments name: of "all" splits together, or of each of `SPLITS`; empty when there are none.

    Raises UserError for blends that contradict each other or cannot be read.
    """
    together = {"--data-path": args.data_path, "--data-args-path": args.data_args_path}
    apart: dict[str, Any] = {f"--{split}-data-path": getattr(args, f"{split}_data_path") for split in SPLITS}
    given = [
        flag
        for flag, value in {**together, "--per-split-data-args-path": args.per_split_data_args_path}.items()
        if value
    ]
    given += [flag for flag, value in apart.items() if value][:1]
    if len(given) > 1:
        raise UserError(
            f"{' and '.join(given)} exclude each other: name the datasets of all splits together, or of each apart "
            "(--unset takes a key, such as data, out of a recipe)"
        )
    if args.data_args_path:
        text = _text_of("--data-args-path", args.data_args_path)
        return {"all": read_blend(f"--data-args-path {args.data_args_path}", text.split())}
    if args.per_split_data_args_path:
        return _from_json(args.per_split_data_args_path)
    if args.data_path:
        return {"all": read_blend("--data-path", args.data_path)}
    return {split: read_blend(flag, apart[flag]) for split, flag in zip(SPLITS, apart, strict=True) if apart[flag]}


def prefixes_of(blends: Mapping[str, Blend]) -> list[str]:
    """Every dataset of the blends, once."""
    return list(dict.fromkeys(prefix for blend in blends.values() for prefix in blend.prefixes))


def _from_json(path: str) -> dict[str, Blend]:
    flag = f"--per-split-data-args-path {path}"
    try:
        content = json.loads(_text_of("--per-split-data-args-path", path))
    except json.JSONDecodeError as error:
        raise UserError(f"{flag} is not JSON: {error}") from None
    if not isinstance(content, dict) or set(content) != set(SPLITS):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f"{flag} must hold the keys train, valid and test (null for a split without data), found {found}"
        )
    words = {name: value.split() if isinstance(value, str) else value for name, value in content.items()}
    for name, value in words.items():
        if value is not None and not (isinstance(value, list) and all(isinstance(word, str) for word in value)):
            raise UserError(
                f"{flag}: {name} must hold a string or a list of strings: prefixes, or weights and prefixes"
            )
    return {name: read_blend(f"{flag}, {name}", value) for name, value in words.items() if value is not None}


def _text_of(flag: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {path} cannot be read: {' '.join(str(error).split())}") from None
