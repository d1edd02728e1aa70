"""A SwiGLU MLP on the host: y = (silu(x G^T) * (x U^T)) D^T, gate and up in memory of their own.

Where one product gives both, operators run over halves of its rows, which is slower. Many tokens are computed by blocks,
which stay in the cache all the way: at once they write the widest activations of a layer to memory and read them back
after each operator. There, with s = sigmoid(gate), a = gate * s and d the gradient of a * up, the gradient of up is d a
and that of gate is d up (s + a - a s), and kept for them are gate, up and s, [3, tokens, f].
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_cod.backends.host_blocks import blocks, needs_gradients, tokens_at_once


class _AtOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        width = down.shape[1]
        gate, up = x @ gate_up[:width].t(), x @ gate_up[width:].t()
        activated = F.silu(gate)
        product = activated * up
        ctx.save_for_backward(x, gate_up, down, gate, up, activated, product)
        return product @ down.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, gate_up, down, gate, up, activated, product = ctx.saved_tensors
        width = down.shape[1]
        by_product, by_gate_up = grad @ down, torch.empty_like(gate_up)
        by_gate = torch.ops.aten.silu_backward(by_product * up, gate)
        by_up = by_product.mul_(activated)
        torch.mm(by_gate.t(), x, out=by_gate_up[:width])
        torch.mm(by_up.t(), x, out=by_gate_up[width:])
        by_x = torch.addmm(by_gate @ gate_up[:width], by_up, gate_up[width:])
        return by_x, by_gate_up, grad.t() @ product


def _by_blocks(x: Tensor, gate_up: Tensor, down: Tensor, kept: Tensor | None) -> Tensor:
    """x [t, h], gate_up [2f, h], down [h, f] -> [t, h]. kept: [3, t, f], filled with what the backward needs."""
    (tokens, hidden), width = x.shape, down.shape[1]
    size = min(tokens, tokens_at_once(hidden))
    of_gate, of_up, of_down = gate_up[:width].t(), gate_up[width:].t(), down.t()
    product, out = x.new_empty(size, width), x.new_empty(tokens, hidden)
    block = x.new_empty(3, size, width) if kept is None else None
    for rows in blocks(tokens, size):
        here, count = x[rows], rows.stop - rows.start
        gate, up, sigmoid = (block[:, :count] if kept is None else kept[:, rows]).unbind()  # type: ignore[index]
        torch.mm(here, of_gate, out=gate)
        torch.mm(here, of_up, out=up)
        torch.sigmoid(gate, out=sigmoid)
        activated = torch.mul(gate, sigmoid, out=product[:count]).mul_(up)
        torch.mm(activated, of_down, out=out[rows])
    return out


class _ByBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        kept = x.new_empty(3, x.shape[0], down.shape[1])
        ctx.save_for_backward(x, gate_up, down, kept)
        return _by_blocks(x, gate_up, down, kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, gate_up, down, kept = ctx.saved_tensors
        (tokens, hidden), width = x.shape, down.shape[1]
        size = min(tokens, tokens_at_once(hidden))
        block = x.new_empty(3, size, width)
        by_x, by_gate_up, by_down = torch.empty_like(x), torch.empty_like(gate_up), torch.empty_like(down)
        halves = (slice(None, width), slice(width, None))
        for rows in blocks(tokens, size):
            here, given, add = x[rows], grad[rows], int(rows.start > 0)
            gate, up, sigmoid = kept[:, rows].unbind()
            by_up, activated, by_gate = block[:, : rows.stop - rows.start].unbind()
            torch.mm(given, down, out=by_up)
            torch.mul(gate, sigmoid, out=activated)
            torch.addcmul(activated, activated, sigmoid, value=-1, out=by_gate).add_(sigmoid).mul_(up).mul_(by_up)
            by_up.mul_(activated)
            by_down.addmm_(given.t(), activated.mul_(up), beta=add)
            for half, by_rows in zip(halves, (by_gate, by_up), strict=True):
                by_gate_up[half].addmm_(by_rows.t(), here, beta=add)
            torch.mm(by_gate, gate_up[:width], out=by_x[rows]).addmm_(by_up, gate_up[width:])
        return by_x, by_gate_up, by_down


def gated_mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """x [..., h], gate_up [2f, h] with the rows of the gate first, down [h, f] -> [..., h], all fp32 or all fp64."""
    rows, (width, hidden) = x.reshape(-1, x.shape[-1]), (down.shape[1], x.shape[-1])
    recorded, several = needs_gradients(x, gate_up, down), rows.shape[0] > tokens_at_once(hidden)
    if recorded:
        out = (_ByBlocks if several else _AtOnce).apply(rows, gate_up, down)
    elif several:
        out = _by_blocks(rows, gate_up, down, None)
    else:
        out = F.silu(rows @ gate_up[:width].t()).mul_(rows @ gate_up[width:].t()) @ down.t()
    return out.view(x.shape)
