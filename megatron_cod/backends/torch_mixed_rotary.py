"""Rotary position embedding of queries, keys and values that lie side by side, on the host.

Megatron's linear gives each head's query, key and value in one row of 3d numbers, tokens first. Turning the rows whole
costs the host less than turning queries and keys alone: its loops run over 3d contiguous numbers, not over halves of a
head, and the result can lie sequence by sequence, which is what torch's attention reads fastest. The backward puts the
three gradients into one buffer and turns it back. The numbers are those of ``torch_rotary.rotate``, to the last bit.
"""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_cod.backends.torch_rotary import Rotation, is_first


@dataclass(frozen=True)
class _Rows:
    """y_i = x_i cos_i + x_(i+c) after_i + x_(i-c) before_i over a row; [s, 1, 1, 3d] each, values and padding unturned."""

    cos: Tensor
    after: Tensor
    before: Tensor
    distance: int
    """c: from an element to its partner."""

    def turned(self, x: Tensor, sequences_first: bool) -> Tensor:
        """x [s, b, heads, 3d], or [b, s, heads, 3d] if ``sequences_first``, into new memory of that order."""
        cos, after, before = (
            table.transpose(0, 1) if sequences_first else table for table in (self.cos, self.after, self.before)
        )
        out = torch.empty(x.shape, dtype=x.dtype)
        torch.mul(x, cos, out=out)
        front, back = slice(None, -self.distance), slice(self.distance, None)
        out[..., front].addcmul_(x[..., back], after[..., front])
        out[..., back].addcmul_(x[..., front], before[..., back])
        return out


@torch.no_grad()
def _rows(rotation: Rotation, sin: Tensor, size: int) -> _Rows:
    """The tables for heads of ``size`` numbers, of which the first r are turned."""
    first, turned = is_first(sin, rotation.interleaved), sin.shape[-1]
    cos = sin.new_ones(sin.shape[0], 1, 1, 3, size)
    after, before = torch.zeros_like(cos), torch.zeros_like(cos)
    for part in (0, 1):  # the query and the key
        cos[..., part, :turned] = rotation.cos
        after[..., part, :turned] = torch.where(first, sin, 0.0)
        before[..., part, :turned] = torch.where(first, 0.0, sin)
    distance = 1 if rotation.interleaved else turned // 2
    return _Rows(cos.flatten(-2), after.flatten(-2), before.flatten(-2), distance)


_made: WeakKeyDictionary[Rotation, tuple[_Rows, _Rows]] = WeakKeyDictionary()


def _both_ways(rotation: Rotation, size: int) -> tuple[_Rows, _Rows]:
    if rotation not in _made:
        _made[rotation] = _rows(rotation, rotation.sin, size), _rows(rotation, rotation.sin_back, size)
    return _made[rotation]


class _RotateMixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mixed: Tensor, rotation: Rotation, heads: int) -> tuple[Tensor, ...]:
        ctx.rotation = rotation
        x = mixed.view(*mixed.shape[:2], heads, -1)
        forth, _ = _both_ways(rotation, x.shape[-1] // 3)
        turned = forth.turned(x.transpose(0, 1), sequences_first=True).transpose(0, 1)
        return turned.chunk(3, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        stacked = torch.stack([grad.transpose(0, 1) for grad in grads], -2).flatten(-2)  # as attention gives them
        _, back = _both_ways(ctx.rotation, stacked.shape[-1] // 3)
        return back.turned(stacked.transpose(0, 1), sequences_first=False).flatten(-2), None, None


def rotate_mixed(mixed: Tensor, rotation: Rotation, heads: int) -> tuple[Tensor, ...]:
    """mixed [s, b, heads * 3d] -> query and key, turned, and value, [s, b, heads, d] each, in memory sequence by sequence.

    rotation: of the positions 0 to s - 1, the same for all sequences.
    """
    return _RotateMixed.apply(mixed, rotation, heads)
