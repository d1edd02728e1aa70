"""Rotary position embedding of queries, keys and values that lie side by side, on the host.

Megatron's linear gives each head's query, key and value in one row of 3d numbers, tokens first. Turning the rows whole
costs the host less than turning queries and keys alone: its loops run over 3d contiguous numbers, not over halves of a
head, and the result can lie sequence by sequence, which is what torch's attention reads fastest. The backward puts the
three gradients into one buffer and turns it back. The numbers are those of ``torch_rotary.rotate``, to the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_cod.backends.host_blocks import blocks, needs_gradients, tokens_at_once
from megatron_cod.backends.torch_rotary import Rotation, is_first


@dataclass(frozen=True)
class _Rows:
    """y_i = x_i cos_i + x_(i+c) after_i + x_(i-c) before_i over a row; [s, 1, 1, 3d] each, values and padding unturned."""

    cos: Tensor
    after: Tensor
    before: Tensor
    distance: int
    """c: from an element to its partner."""

    def at(self, positions: slice) -> "_Rows":
        """The tables of these positions."""
        return _Rows(self.cos[positions], self.after[positions], self.before[positions], self.distance)

    def turn(self, x: Tensor, out: Tensor) -> Tensor:
        """x and out [s, b, heads, 3d], in memory in any order of sequences and positions."""
        torch.mul(x, self.cos, out=out)
        front, back = slice(None, -self.distance), slice(self.distance, None)
        out[..., front].addcmul_(x[..., back], self.after[..., front])
        out[..., back].addcmul_(x[..., front], self.before[..., back])
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


def _by_sequence(x: Tensor, *shape: int) -> Tensor:
    """New memory [s, b, ...] in which the positions of a sequence follow each other."""
    positions, sequences, *rest = shape
    return x.new_empty(sequences, positions, *rest).transpose(0, 1)


def _turned_back(grads: Sequence[Tensor], back: _Rows, out: Tensor) -> Tensor:
    """Gradients of query, key and value [s, b, heads, d] as attention gives them -> out [s, b, heads, 3d]."""
    stacked = torch.stack([grad.transpose(0, 1) for grad in grads], -2).flatten(-2)
    return back.turn(stacked.transpose(0, 1), out)


class _RotateMixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mixed: Tensor, rotation: Rotation, heads: int) -> tuple[Tensor, ...]:
        ctx.rotation = rotation
        x = mixed.view(*mixed.shape[:2], heads, -1)
        forth, _ = _both_ways(rotation, x.shape[-1] // 3)
        return forth.turn(x, _by_sequence(x, *x.shape)).chunk(3, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (positions, sequences, heads, size), rotation = grads[0].shape, ctx.rotation
        out = grads[0].new_empty(positions, sequences, heads, 3 * size)
        return _turned_back(grads, _both_ways(rotation, size)[1], out).flatten(-2), None, None


def rotate_mixed(mixed: Tensor, rotation: Rotation, heads: int) -> tuple[Tensor, ...]:
    """mixed [s, b, heads * 3d] -> query and key, turned, and value, [s, b, heads, d] each, in memory sequence by sequence.

    rotation: of the positions 0 to s - 1, the same for all sequences.
    """
    return _RotateMixed.apply(mixed, rotation, heads)


def _project(x: Tensor, weight: Tensor, rotation: Rotation, heads: int) -> tuple[Tensor, ...]:
    (positions, sequences, hidden), size = x.shape, weight.shape[0] // (3 * heads)
    at_once = max(1, tokens_at_once(hidden) // sequences)
    forth, _ = _both_ways(rotation, size)
    out = _by_sequence(x, positions, sequences, heads, 3 * size)
    block = x.new_empty(min(positions, at_once), sequences, heads, 3 * size)
    for some in blocks(positions, at_once):
        mixed = block[: some.stop - some.start]
        torch.mm(x[some].flatten(0, 1), weight.t(), out=mixed.view(-1, weight.shape[0]))
        forth.at(some).turn(mixed, out[some])
    return out.chunk(3, -1)


class _ProjectRotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rotation: Rotation, heads: int) -> tuple[Tensor, ...]:
        ctx.rotation = rotation
        ctx.save_for_backward(x, weight)
        return _project(x, weight, rotation, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        (positions, sequences, hidden), (heads, size) = x.shape, grads[0].shape[2:]
        at_once = max(1, tokens_at_once(hidden) // sequences)
        _, back = _both_ways(ctx.rotation, size)
        block = x.new_empty(min(positions, at_once), sequences, heads, 3 * size)
        by_x, by_weight = x.new_empty(x.shape), torch.empty_like(weight)
        for some in blocks(positions, at_once):
            mixed = _turned_back([one[some] for one in grads], back.at(some), block[: some.stop - some.start])
            rows = mixed.view(-1, weight.shape[0])
            by_weight.addmm_(rows.t(), x[some].flatten(0, 1), beta=int(some.start > 0))
            torch.mm(rows, weight, out=by_x[some].view(-1, hidden))
        return by_x, by_weight, None, None


def project_rotated(x: Tensor, weight: Tensor, rotation: Rotation, heads: int) -> tuple[Tensor, ...]:
    """``rotate_mixed`` of x weight^T, by blocks of positions. x [s, b, h], weight [heads * 3d, h]; all fp32 or all fp64."""
    if needs_gradients(x, weight):
        return _ProjectRotated.apply(x, weight, rotation, heads)
    return _project(x, weight, rotation, heads)
