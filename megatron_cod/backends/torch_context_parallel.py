"""Context parallelism for torch's attention: keys and values are gathered over the ranks, their gradients scattered back.

Megatron cuts a sequence into 2C chunks for C ranks and gives rank r the chunks r and 2C-1-r, so that under a causal mask
all ranks have the same work. A chunk attends to the keys from the first of the sequence to its own last, which fused
kernels do without a mask in memory (``causal_lower_right``). Memory grows with the sequence, not with its square.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

GATHERED = ("p2p", "all_gather", "allgather")
"""Values of ``--cp-comm-type`` that are accepted: Megatron's default, of which a line is logged, and what is done."""


def comm_types(config: TransformerConfig) -> list[str]:
    """``--cp-comm-type``, whether given for all layers or one by one."""
    given = config.cp_comm_type or []
    return [given] if isinstance(given, str) else list(given)


def unsupported(config: TransformerConfig) -> dict[str, bool]:
    """Flags that torch's attention does not support under context parallelism -> whether they are set."""
    if config.context_parallel_size == 1:
        return {}
    other = [kind for kind in comm_types(config) if kind not in GATHERED]
    return {
        "--attention-backend unfused with --context-parallel-size > 1": config.attention_backend == AttnBackend.unfused,
        # The ranks' random states are equal: tokens of other ranks would lose the same weights.
        "--attention-dropout > 0 with --context-parallel-size > 1": config.attention_dropout > 0,
        f"--cp-comm-type {' '.join(other)} (keys and values are gathered: all_gather)": bool(other),
        "--hierarchical-context-parallel-sizes": bool(config.hierarchical_context_parallel_sizes),
    }


def log_line(config: TransformerConfig) -> str | None:
    """What the log says of how keys and values travel; None without context parallelism."""
    if config.context_parallel_size == 1 or config.transformer_impl != "local":
        return None
    default = " (--cp-comm-type p2p is Transformer Engine's)" if "p2p" in comm_types(config) else ""
    return f"context parallelism: each layer gathers keys and values over {config.context_parallel_size} ranks{default}"


def chunk_numbers(rank: int, size: int) -> tuple[int, int]:
    """The chunks of a rank, of 2 * size in the sequence (``get_batch_on_this_cp_rank``)."""
    return rank, 2 * size - 1 - rank


def _in_order(gathered: Tensor, size: int) -> Tensor:
    """What the ranks hold, one behind the other, [2C * c, ...] -> the same rows as they follow in the sequence."""
    halves = gathered.unflatten(0, (size, 2, -1))
    return torch.cat([halves[:, 0], halves[:, 1].flip(0)]).flatten(0, 1)


def _by_rank(ordered: Tensor, size: int) -> Tensor:
    """The inverse of ``_in_order``."""
    chunks = ordered.unflatten(0, (2 * size, -1))
    return torch.stack([chunks[:size], chunks[size:].flip(0)], 1).flatten(0, 2)


class _Gather(torch.autograd.Function):
    """This rank's keys and values -> those that each of its two chunks attends to; gradients summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, key: Tensor, value: Tensor, group: Any, ends: tuple[int, int]) -> tuple[Tensor, ...]:
        size = dist.get_world_size(group)
        local = torch.cat([key, value], -1)  # one collective for both
        gathered = local.new_empty(size * local.shape[0], *local.shape[1:])
        dist.all_gather_into_tensor(gathered, local, group=group)
        keys, values = _in_order(gathered, size).split([key.shape[-1], value.shape[-1]], -1)
        ctx.group, ctx.size, ctx.ends, ctx.shape = group, size, ends, gathered.shape
        ctx.widths = [key.shape[-1], value.shape[-1]]
        return keys[: ends[0]], values[: ends[0]], keys[: ends[1]], values[: ends[1]]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total = gradients[0].new_zeros(ctx.shape)
        keys, values = total.split(ctx.widths, -1)
        for whole, first, last in ((keys, gradients[0], gradients[2]), (values, gradients[1], gradients[3])):
            whole[: ctx.ends[0]] += first
            whole[: ctx.ends[1]] += last
        local = total.new_empty(ctx.shape[0] // ctx.size, *ctx.shape[1:])
        dist.reduce_scatter_tensor(local, _by_rank(total, ctx.size), group=ctx.group)
        key, value = local.split(ctx.widths, -1)
        return key, value, None, None


def _masks(mask: Tensor | None, lengths: list[tuple[int, int]], causal: bool) -> list[Tensor | None]:
    """What torch takes as the mask of each chunk. mask: None, or of this rank's queries over all keys."""
    if mask is not None:
        parts = mask.chunk(2, dim=-2)
        return [part[..., :keys] for part, (_, keys) in zip(parts, lengths, strict=True)]
    return [causal_lower_right(queries, keys) if causal else None for queries, keys in lengths]


def attention_of_chunks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, group: Any = None
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """(queries, keys, values, mask) of each of this rank's two chunks, to be attended to one by one.

    query [s/C, b, heads, d], key and value [s/C, b, groups, d]: this rank's two chunks, one behind the other. mask: as
    torch has it, [..., s/C, s]; causal even where ``causal`` is set. group: the context-parallel ranks. Collective.
    """
    group = group or parallel_state.get_context_parallel_group()
    size = dist.get_world_size(group)
    length = query.shape[0] // 2
    numbers = chunk_numbers(dist.get_rank(group), size)
    ends = tuple((number + 1) * length if causal else 2 * size * length for number in numbers)
    first_key, first_value, last_key, last_value = _Gather.apply(key, value, group, ends)
    masks = _masks(mask, [(length, end) for end in ends], causal)
    yield from zip(query.chunk(2), (first_key, last_key), (first_value, last_value), masks, strict=True)
