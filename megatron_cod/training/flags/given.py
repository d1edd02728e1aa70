"""Who gave a flag: the command line, the recipe, or neither, where a program or a default set it."""

from __future__ import annotations

from argparse import Action
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from megatron_cod.args import MegatronArgs
from megatron_cod.training.flags.void_row import Void


def _destinations(words: Iterable[str], actions: Iterable[Action]) -> frozenset[str]:
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    return frozenset(one.dest for one in actions if flags & set(one.option_strings))


@dataclass(frozen=True)
class Given:
    """What the user gave at one start."""

    command_line: Sequence[str]
    recipe: Sequence[str]
    """As flags, without what ``--unset`` omits."""
    recipe_alone: MegatronArgs
    """The parse of defaults and recipe, without the command line."""
    actions: Sequence[Action]
    """Of the parser."""

    @cached_property
    def typed(self) -> frozenset[str]:
        """Arguments that the command line names."""
        return _destinations(self.command_line, self.actions)

    @cached_property
    def of_recipe(self) -> frozenset[str]:
        """Arguments that the recipe names."""
        return _destinations(self.recipe, self.actions)

    def counts(self, name: str, row: Void) -> bool:
        """Whether the user must hear that an argument of a row does nothing.

        Not of a recipe's flag that the recipe itself lets act: then the command line has overruled the two together.
        But a row that refuses holds for everybody.
        """
        if name in self.typed or row.refused:
            return True
        return name in self.of_recipe and not row.typed and not row.acts(self.recipe_alone)
