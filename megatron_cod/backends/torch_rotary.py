"""Rotary position embedding on torch alone: tables of cos and sin made once, applied to queries and keys at a time.

Megatron's own unfused rotary makes cos and sin in every layer and takes 24 kernels a layer. Here a layer reads tables that
all layers share, and turns q and k in one compiled function (one or two kernels each way) with Triton, in three
passes without temporaries elsewhere. The backward is the same rotation with another sine, and saves no activation.

Each element x_i of a head has a partner x_j, a half of the head away (or its neighbour, interleaved):
y_i = x_i cos_i + x_j sin_i, with the sign of the formula put into ``sin``.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from megatron.core import jit
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, eq=False)
class Rotation:
    """cos and sin of one set of angles, [s, 1 or b, 1, r] each, in the dtype of queries and keys; r is at most their d."""

    cos: Tensor
    sin: Tensor
    """Signed, as the forward takes it."""
    sin_back: Tensor
    """Signed, as the backward takes it."""
    interleaved: bool

    def at(self, positions: Tensor) -> "Rotation":
        """The rotation of tokens at these positions [t], not of 0, 1, 2, ..."""
        cos, sin, back = (table.index_select(0, positions) for table in (self.cos, self.sin, self.sin_back))
        return Rotation(cos, sin, back, self.interleaved)


def _partners(x: Tensor, interleaved: bool) -> Tensor:
    """Each element's partner in its place, [..., r]."""
    pairs = x.unflatten(-1, (-1, 2) if interleaved else (2, -1))
    return pairs.flip(-1 if interleaved else -2).flatten(-2)


def is_first(table: Tensor, interleaved: bool) -> Tensor:
    """Which elements of a table's last dimension have their partner behind them, [r]."""
    index = torch.arange(table.shape[-1], device=table.device)
    return index % 2 == 0 if interleaved else index < table.shape[-1] // 2


@torch.no_grad()
def make_rotation(angles: Tensor, dtype: torch.dtype, interleaved: bool, mscale: float = 1.0) -> Rotation:
    """angles: Megatron's ``rotary_pos_emb``, [s, 1 or b, 1, r]. mscale: YaRN's factor of both cos and sin."""
    cos, sin = (torch.cos(angles) * mscale).to(dtype), (torch.sin(angles) * mscale).to(dtype)
    signed = torch.where(is_first(sin, interleaved), -sin, sin)
    return Rotation(cos, signed, _partners(signed, interleaved), interleaved)


class _Tables:
    """The rotations of the last few angles; layers and steps ask for the same ones again and again."""

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._kept: OrderedDict[Any, tuple[Tensor, Rotation]] = OrderedDict()

    def get(self, angles: Tensor, dtype: torch.dtype, interleaved: bool, mscale: float) -> Rotation:
        if torch.compiler.is_compiling():
            return make_rotation(angles, dtype, interleaved, mscale)
        # What a CUDA graph captures must be in it: at a replay the angles may be others, in the same memory.
        if angles.is_cuda and torch.cuda.is_current_stream_capturing():
            return make_rotation(angles, dtype, interleaved, mscale)
        version = 0 if angles.is_inference() else angles._version
        # Under recomputation each layer gets a new tensor over the same memory, which the entry keeps from being reused.
        key = (angles.data_ptr(), angles.shape, angles.stride(), angles.device, version, dtype, interleaved, mscale)
        found = self._kept.pop(key, None) or (angles, make_rotation(angles, dtype, interleaved, mscale))
        self._kept[key] = found
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return found[1]


tables = _Tables()


def _turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The rotation as a formula, for the compiler."""
    front, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    turned = front * cos + _partners(front, interleaved) * sin
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned


def _turned_in_place(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The same in three passes and no temporary, for the host and for GPUs without a compiler."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    front, turned = x[..., : cos.shape[-1]], out[..., : cos.shape[-1]]
    torch.mul(front, cos, out=turned)
    halves = (slice(0, None, 2), slice(1, None, 2))
    if not interleaved:
        middle = cos.shape[-1] // 2
        halves = (slice(0, middle), slice(middle, None))
    for own, other in (halves, halves[::-1]):
        turned[..., own].addcmul_(front[..., other], sin[..., own])
    out[..., cos.shape[-1] :] = x[..., cos.shape[-1] :]
    return out


Turn = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]


def _both(
    query: Tensor, key: Tensor, q_cos: Tensor, q_sin: Tensor, k_cos: Tensor, k_sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    return _turned(query, q_cos, q_sin, interleaved), _turned(key, k_cos, k_sin, interleaved)


def _both_in_place(
    query: Tensor, key: Tensor, q_cos: Tensor, q_sin: Tensor, k_cos: Tensor, k_sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    return _turned_in_place(query, q_cos, q_sin, interleaved), _turned_in_place(key, k_cos, k_sin, interleaved)


@lru_cache
def _on_gpu() -> Turn:
    """Compiled, where Megatron's own fusions are (``--disable-jit-fuser``) and Triton runs."""
    import torch._dynamo
    from torch.utils._triton import has_triton

    off = jit.jit_fuser is jit.noop_decorator or torch._dynamo.config.disable or not has_triton()
    return _both_in_place if off else torch.compile(_both)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, of_query: Rotation, of_key: Rotation) -> tuple[Tensor, Tensor]:
        ctx.rotations = of_query, of_key
        turn = _on_gpu() if query.is_cuda else _both_in_place
        return turn(query, key, of_query.cos, of_query.sin, of_key.cos, of_key.sin, of_query.interleaved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_query, of_key = ctx.rotations
        turn = _on_gpu() if query.is_cuda else _both_in_place
        sines = of_query.sin_back, of_key.sin_back
        return *turn(query, key, of_query.cos, sines[0], of_key.cos, sines[1], of_query.interleaved), None, None


def rotate(query: Tensor, key: Tensor, of_query: Rotation, of_key: Rotation) -> tuple[Tensor, Tensor]:
    """query [s, b, heads, d], key [s, b, groups, d], turned; what is behind the first r of d is passed on."""
    if torch.compiler.is_compiling():
        return _both(query, key, of_query.cos, of_query.sin, of_key.cos, of_key.sin, of_query.interleaved)
    return _Rotate.apply(query, key, of_query, of_key)
