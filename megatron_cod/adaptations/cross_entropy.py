"""Cross entropy of whole vocabularies on the host: Megatron's arithmetic, row by row in the logits' own memory.

Megatron passes over all logits once for each of maximum, difference, exponential, sum and quotient; here a block of rows
stays in the cache through all of them. The three reductions over the tensor parallel group, which has one rank, are left
out with them.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK_BYTES = 1 << 18
"""Of logits: with what is read beside them they fit into a core's second cache."""


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        # As Megatron: fp32 logits are overwritten with the probabilities, whose memory the gradient then takes.
        values = logits.float()
        rows = values.view(-1, logits.shape[-1])
        wanted = target.reshape(-1, 1)
        loss = rows.new_empty(rows.shape[0], 1)
        step = max(1, _BLOCK_BYTES // (4 * rows.shape[1]))
        for block, one, out in zip(rows.split(step), wanted.split(step), loss.split(step), strict=True):
            block.sub_(block.amax(-1, keepdim=True))
            picked = block.gather(-1, one)
            total = block.exp_().sum(-1, keepdim=True)
            torch.sub(total.log(), picked, out=out)
            block.div_(total)
        ctx.save_for_backward(values, wanted)
        ctx.dtype = logits.dtype
        return loss.view(target.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        values, wanted = ctx.saved_tensors
        rows = values.view(-1, values.shape[-1])
        rows.scatter_add_(-1, wanted, rows.new_full(wanted.shape, -1.0)).mul_(grad.reshape(-1, 1))
        return values.to(ctx.dtype), None


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Losses [s, b] in fp32 of logits [s, b, v], which it overwrites if they are fp32, and targets [s, b]."""
    return _CrossEntropy.apply(logits, target)


def of_whole_vocabularies(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``tensor_parallel.vocab_parallel_cross_entropy`` that is ours where one rank has the whole vocabulary."""

    @wraps(original)
    def wrapper(
        vocab_parallel_logits: Tensor, target: Tensor, label_smoothing: float = 0.0, tp_group: Any = None
    ) -> Tensor:
        from megatron.core.parallel_state import get_tensor_model_parallel_group  # imported after the adaptations

        group = get_tensor_model_parallel_group() if tp_group is None else tp_group
        if group.size() == 1 and label_smoothing == 0.0 and vocab_parallel_logits.is_contiguous():
            return cross_entropy(vocab_parallel_logits, target)
        return original(vocab_parallel_logits, target, label_smoothing, tp_group)

    return wrapper
