"""Context parallelism in the training loop: this rank's part of a batch, and what its part of the loss weighs.

The layers' part is in ``backends/torch_context_parallel.py``, or Transformer Engine's.
"""

from typing import Any

import torch
from megatron.core import mpu
from megatron.core.utils import get_batch_on_this_cp_rank
from torch import Tensor


def cut_to_rank(batch: dict[str, Any]) -> dict[str, Any]:
    """The two chunks of every tensor [b, s] (a mask: [b, 1, s, s], by queries) that this rank computes."""
    if mpu.get_context_parallel_world_size() == 1:
        return batch
    return get_batch_on_this_cp_rank(dict(batch), is_hybrid_cp=False, cp_group=mpu.get_context_parallel_group())


def balanced(loss: Tensor, tokens: Tensor) -> Tensor:
    """The sum of this rank's token losses, weighed so that the mean over ranks is the mean over the sequence's tokens.

    Megatron divides it by ``tokens``, this rank's count, and averages over the ranks: without masked tokens that is the
    mean already, and the weight is 1. Collective over the context-parallel ranks.
    """
    size = mpu.get_context_parallel_world_size()
    if size == 1:
        return loss
    everywhere = tokens.clone()
    torch.distributed.all_reduce(everywhere, group=mpu.get_context_parallel_group())
    return loss * (tokens.clamp(min=1) * size / everywhere.clamp(min=1))


def summed(values: Tensor) -> Tensor:
    """The sum over the context-parallel ranks. Collective."""
    if mpu.get_context_parallel_world_size() > 1:
        torch.distributed.all_reduce(values, group=mpu.get_context_parallel_group())
    return values
