"""A model with some of its blocks omitted, or neighbours merged into one.

It works on a model that transformers computes: of an LNS checkpoint the depth factors are in the gammas by then, each
block's own, and stay with it wherever it ends up.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from megatron_cod.analysis.depth.models import COUNTS, find_blocks
from megatron_cod.errors import UserError


@dataclass(frozen=True)
class Plan:
    """Which blocks, counted from 1, become which."""

    groups: tuple[tuple[int, ...], ...]
    """For each block of the new model the old ones it is made of: one, or neighbours whose weights are averaged."""

    @staticmethod
    def removing(depth: int, removed: set[int]) -> Plan:
        """All but ``removed``. UserError for numbers that are no blocks, and for nothing left."""
        _check(depth, removed)
        kept = [number for number in range(1, depth + 1) if number not in removed]
        if not kept:
            raise UserError(f"all {depth} blocks would be removed")
        return Plan(tuple((number,) for number in kept))

    @staticmethod
    def merging(depth: int, first: int, last: int) -> Plan:
        """Blocks ``first`` to ``last`` as one. UserError for numbers that are no blocks in this order."""
        _check(depth, {first, last})
        if first >= last:
            raise UserError(f"--merge {first} {last}: the first must come before the last")
        before, after = range(1, first), range(last + 1, depth + 1)
        return Plan((*((n,) for n in before), tuple(range(first, last + 1)), *((n,) for n in after)))


def _check(depth: int, numbers: set[int]) -> None:
    wrong = sorted(number for number in numbers if not 1 <= number <= depth)
    if wrong:
        raise UserError(f"no block {', '.join(map(str, wrong))}: the model has blocks 1 to {depth}")


def prune(model: Any, plan: Plan, blocks: str | None = None) -> None:
    """Change a transformers model, its configuration too, in place. UserError for blocks that cannot be averaged."""
    old: Any = find_blocks(model, blocks)
    depth = len(old)
    made = [_merged([old[number - 1] for number in group], group) for group in plan.groups]
    for place, block in enumerate(made):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    while len(old):
        del old[-1]
    old.extend(made)
    _shorten(model.config, plan, depth)


def _merged(members: list[torch.nn.Module], group: tuple[int, ...]) -> torch.nn.Module:
    first, states = members[0], [member.state_dict() for member in members]
    if len(members) == 1:
        return first
    if any(state.keys() != states[0].keys() for state in states):
        raise UserError(f"blocks {group[0]} to {group[-1]} are not built alike: they cannot be averaged")
    mean = {name: torch.stack([s[name].float() for s in states]).mean(0).to(t.dtype) for name, t in states[0].items()}
    first.load_state_dict(mean)
    return first


def _shorten(config: Any, plan: Plan, depth: int) -> None:
    """Adapt the lists by layer of a configuration to the new blocks."""
    for one in _configs(config):
        counts = [name for name in COUNTS if getattr(one, name, None) == depth]
        if not counts:
            continue
        _shorten_lists(one, plan, depth)
        for name in counts:
            setattr(one, name, len(plan.groups))


def _configs(config: Any) -> list[Any]:
    """A configuration and those within it, of a model of several."""
    inner = [value for value in vars(config).values() if hasattr(value, "to_dict") and value is not config]
    return [config, *inner]


def _shorten_lists(config: Any, plan: Plan, depth: int) -> None:
    firsts = [group[0] - 1 for group in plan.groups]
    _list_dense_layers(config, depth)
    for name, value in list(vars(config).items()):
        if not isinstance(value, list | tuple) or _of_tokens(name):
            continue
        if is_list_of_layers(value, depth):
            made = [place for place, old in enumerate(firsts) if old in value]
        elif len(value) == depth:
            made = [value[old] for old in firsts]
        else:
            continue
        # Each class has its checks of the list against the count, which is another one until both are set.
        vars(config)[name] = type(value)(made)
    dense = getattr(config, "first_k_dense_replace", None)
    if dense is not None:
        config.first_k_dense_replace = sum(place < dense for place in firsts)


def _list_dense_layers(config: Any, depth: int) -> None:
    """Name the dense layers one by one where every n-th has experts: among the layers that stay they are others."""
    step = getattr(config, "decoder_sparse_step", None) or 1
    if step > 1:
        dense = {place for place in range(depth) if (place + 1) % step} | set(config.mlp_only_layers or ())
        config.decoder_sparse_step, config.mlp_only_layers = 1, sorted(dense)


def _of_tokens(name: str) -> bool:
    """Lists that a vocabulary or a file names, and no layer."""
    return name.endswith(("token_id", "token_ids", "architectures")) or name.startswith("_")


def is_list_of_layers(value: Any, depth: int) -> bool:
    """Whether a list has the numbers of some layers (from 0), and not an entry a layer."""
    numbers = [one for one in value if type(one) is int]
    ascending = len(numbers) == len(value) > 0 and all(a < b for a, b in itertools.pairwise(numbers))
    return ascending and numbers[0] >= 0 and numbers[-1] < depth
