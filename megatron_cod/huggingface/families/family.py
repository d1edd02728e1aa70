"""A stock architecture of Hugging Face: its mapping table, how its config reads and writes, what its model computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_cod.huggingface.families.architecture import Architecture, Multipliers
from megatron_cod.huggingface.families.config_fields import Config
from megatron_cod.huggingface.families.mapping_rows import Row


@dataclass(frozen=True)
class Family:
    """One of ``table.FAMILIES``."""

    name: str
    """Its ``model_type``."""
    model_class: str
    """What ``architectures`` names."""
    rows: tuple[Row, ...]
    read: Callable[[Config], dict[str, Any]]
    """Fields of ``Architecture`` beyond ``read_common``; UserError for what Megatron's model does not compute."""
    write: Callable[[Architecture], dict[str, Any]]
    """Keys of the config beyond those that all families have."""
    needs: frozenset[str] = frozenset()
    """``Architecture.features`` that its model always has."""
    may_have: frozenset[str] = frozenset()
    """Those that it can have or not; with any other it does not compute the model."""
    fits: Callable[[Architecture], bool] = lambda _arch: True
    """What else decides whether its model computes an architecture: sizes, kinds of router."""
    multiplies: Callable[[Architecture], Multipliers] = lambda _arch: Multipliers()
    """What its model of this architecture multiplies; what is asked for beside that is folded into weights."""
    less_one: bool = False
    """Whether the weights of its norms are gamma less 1."""
    predicts: Callable[[Architecture], bool] = lambda _arch: False
    """Whether its directory of this architecture may have layers of multi-token prediction, for which it has rows."""
    reads: frozenset[str] = frozenset()
    """Keys that its config has beside ``config_fields.READ``, and that ``read`` reads or refuses but for one value."""
    free: frozenset[str] = frozenset()
    """Further ones on which the function of a trained model does not hang."""
    prepare: Callable[[Config], Config] = lambda config: config
    """A config with keys that only this family spells so in the common spelling; UserError as ``read``."""

    def expresses(self, arch: Architecture) -> bool:
        """Whether the stock model computes this architecture."""
        found = arch.features()
        return self.needs <= found <= self.needs | self.may_have and self.fits(arch)
