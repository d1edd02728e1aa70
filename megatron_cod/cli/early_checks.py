"""What ``megatron-cod train``, ``sft`` and ``evaluate`` refuse before torch and Megatron are imported, which takes seconds.

A recipe that cannot be read, and flags that nobody has. All else is refused by the run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_cod.errors import UserError, did_you_mean
from megatron_cod.training.flags.recipe_files import load_recipe

HELP = Path(__file__).parent / "help"
"""``training_help.py`` writes its files, a test compares them."""


def known_flags() -> frozenset[str]:
    """Every flag that one of the three has, Megatron's and those of the package's schemes."""
    return frozenset((HELP / "flags.txt").read_text().split())


def unknown_words(words: Sequence[str], known: frozenset[str]) -> list[str]:
    """Flags that are not known, each with the values behind it."""
    found, is_unknown = [], False
    for word in words:
        if word.startswith("--"):
            is_unknown = word.split("=", 1)[0] not in known
        if is_unknown:
            found.append(word)
    return found


def check_early(words: Sequence[str]) -> None:
    """UserError for a recipe that cannot be read, and for a flag that does not exist."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--recipe")
    try:
        given = parser.parse_known_args(list(words))[0].recipe
    except argparse.ArgumentError:
        return  # without a value: the run says so
    recipe = load_recipe(given) if given else {}
    if recipe.get("import") or any(word.split("=", 1)[0] == "--import" for word in words):
        return  # schemes of the user's own have flags too
    known = known_flags()
    unknown = unknown_words(words, known)
    if unknown:
        hint = did_you_mean(unknown[0].split("=", 1)[0], sorted(known))
        raise UserError(f"unrecognized arguments: {' '.join(unknown)}{hint} (--help lists the flags)")
