"""Rates, weight decay and epsilon that differ between the kinds of parameters of a scheme.

Megatron's optimizer has a group of parameters for each combination of overrides: vectors have no weight decay, and under
``--decoupled-lr`` parameters marked ``is_embedding_or_output_parameter`` have a rate of their own. Both together split the
four kinds that rules are about; ``set_rules`` then writes their numbers into the groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_cod.args import MegatronArgs


@dataclass(frozen=True)
class Multipliers:
    """What a kind of parameter has instead of the run's numbers: these times them."""

    lr: float = 1.0
    weight_decay: float = 1.0
    """Vectors are not decayed in any case."""
    eps: float = 1.0
    """Of Adam."""


@dataclass(frozen=True)
class GroupRules:
    """The multipliers of each kind."""

    outside: Multipliers = field(default_factory=Multipliers)
    """Of what is in no block: embeddings, head, final norm."""
    matrices: Multipliers = field(default_factory=Multipliers)
    """Of the matrices of blocks."""
    vectors: Multipliers = field(default_factory=Multipliers)
    """Of the norms and biases of blocks."""

    def of(self, outside: bool, vector: bool) -> Multipliers:
        """Those of a group."""
        return self.outside if outside else self.vectors if vector else self.matrices

    def lines(self) -> list[str]:
        """For the log."""
        kinds = (("outside of blocks", self.outside), ("matrices", self.matrices), ("norms and biases", self.vectors))
        return [
            f"{name}: lr x {one.lr:g}, weight decay x {one.weight_decay:g}, Adam's eps x {one.eps:g}"
            for name, one in kinds
        ]


_BLOCKS = "decoder.layers."


def mark_outside(chunks: list[Any]) -> list[Any]:
    """Pre-wrap hook: the mark of embeddings and head is on all that is outside of blocks."""
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            parameter.is_embedding_or_output_parameter = _BLOCKS not in name
    return chunks


def _mark(args: MegatronArgs) -> float:
    """A rate that no other group has. Before a checkpoint is read, Megatron's distributed optimizer loads its own state,
    in which it finds groups by their rates: with the same rate in two of them one would become the other."""
    rate: float = args.lr + 1.0
    return rate


def split_groups(args: MegatronArgs) -> None:
    """Have Megatron, which builds its optimizer next, keep what is marked in groups of its own. args: Megatron's."""
    args.decoupled_lr = _mark(args)


def set_rules(groups: Sequence[dict[str, Any]], rules: GroupRules, args: MegatronArgs) -> None:
    """Write the numbers of the rules into an optimizer's groups, which are split as above. A second time it does nothing.

    args: Megatron's, with the run's numbers.
    """
    args.decoupled_lr = None
    if any(group["is_decoupled_lr"] for group in groups):
        return
    for group in groups:
        outside = group["max_lr"] == _mark(args)
        mine = rules.of(outside, vector=group["wd_mult"] == 0.0)
        group["max_lr"], group["min_lr"] = args.lr * mine.lr, args.min_lr * mine.lr
        group["wd_mult"] *= mine.weight_decay
        group["eps"] = args.adam_eps * mine.eps
        # Megatron finds the groups of a checkpoint by their rates and this, not by eps; and it logs the first rate of
        # those under ``default_config``, which is to be the run's.
        group["is_decoupled_lr"] = group["default_config"] = outside
