"""Context parallelism for torch's attention: keys and values are gathered over the ranks, their gradients scattered back.

Megatron cuts a sequence into 2C chunks for C ranks and gives rank r the chunks r and 2C-1-r, so that under a causal mask
all ranks have the same work. A chunk attends to the keys from the first of the sequence to its own last, which the flash
kernel does without a mask in memory. Memory grows with the sequence, not with its square.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention

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
    """The log line about how keys and values are exchanged; None without context parallelism."""
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


def _takes_flash(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the flash kernel can be called for them, [b, heads, s, d]. Its own causal mask is at the lower right."""
    grouped = query.shape[1] != key.shape[1]
    params = SDPAParams(query, key, value, None, 0.0, False, grouped)
    return query.is_cuda and query.shape[-1] % 8 == 0 and can_use_flash_attention(params)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """Queries [c, b, heads, d] of one chunk over keys and values [k, b, groups, d] that end with it -> [c, b, heads * d].

    Torch's own ``is_causal`` lines up the first query with the first key, here the last must meet the last.
    """
    query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
    queries, keys = query.shape[2], key.shape[2]
    if causal and queries < keys and _takes_flash(query, key, value):
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, 0.0, True, scale=scale)[0].permute(2, 0, 1, 3).flatten(2)
    if causal and queries < keys:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    context = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=causal and queries == keys,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return context.permute(2, 0, 1, 3).flatten(2)


def attention_of_chunks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None = None,
    group: Any = None,
) -> Tensor:
    """Attention of this rank's two chunks, [s/C, b, heads * d]. Collective over the context-parallel ranks.

    query [s/C, b, heads, d], key and value [s/C, b, groups, d]: the chunks, one behind the other. mask: as torch has it,
    [..., s/C, s]; what ``causal`` asks for is in it. group: the ranks, by default Megatron's.
    """
    group = group or parallel_state.get_context_parallel_group()
    size = dist.get_world_size(group)
    length = query.shape[0] // 2
    numbers = chunk_numbers(dist.get_rank(group), size)
    ends = tuple((number + 1) * length if causal else 2 * size * length for number in numbers)
    gathered = _Gather.apply(key, value, group, ends)
    masks = [None, None] if mask is None else mask.chunk(2, dim=-2)
    parts = zip(query.chunk(2), gathered[::2], gathered[1::2], masks, strict=True)
    return torch.cat(
        [
            _attend(q, k, v, m if m is None else m[..., : k.shape[0]], causal and m is None, scale)
            for q, k, v, m in parts
        ]
    )
