"""A SwiGLU MLP on the host: y = (silu(x G^T) * (x U^T)) D^T, gate and up in memory of their own.

After one product for both, each operator would run over halves of rows, which is slower. Many tokens are computed in blocks
that stay in the cache; computed at once, the widest activations of a layer would go to memory and back at each operator.
The output equals Megatron's to the last bit.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_cod.backends.host_blocks import blocks, needs_gradients, tokens_at_once

_silu_backward = torch.ops.aten.silu_backward.default


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
        by_gate = _silu_backward(by_product * up, gate)
        by_up = by_product.mul_(activated)
        torch.mm(by_gate.t(), x, out=by_gate_up[:width])
        torch.mm(by_up.t(), x, out=by_gate_up[width:])
        by_x = torch.addmm(by_gate @ gate_up[:width], by_up, gate_up[width:])
        return by_x, by_gate_up, grad.t() @ product


def _by_blocks(x: Tensor, gate_up: Tensor, down: Tensor, kept: Tensor | None) -> Tensor:
    """x [t, h], gate_up [2f, h], down [h, f] -> [t, h]. kept: [3, t, f], filled with what the backward needs."""
    (tokens, hidden), width = x.shape, down.shape[1]
    size = tokens_at_once(hidden)
    of_gate, of_up, of_down = gate_up[:width].t(), gate_up[width:].t(), down.t()
    product, out = x.new_empty(size, width), x.new_empty(tokens, hidden)
    used = x.new_empty(3, size, width) if kept is None else kept
    for rows in blocks(tokens, size):
        here, some = x[rows], slice(rows.stop - rows.start)
        gate, up, activated = used[:, some if kept is None else rows].unbind()
        torch.mm(here, of_gate, out=gate)
        torch.mm(here, of_up, out=up)
        torch.ops.aten.silu.out(gate, out=activated)
        torch.mm(torch.mul(activated, up, out=product[some]), of_down, out=out[rows])
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
        size = tokens_at_once(hidden)
        used = x.new_empty(3, size, width)
        by_x, by_gate_up, by_down = torch.empty_like(x), torch.empty_like(gate_up), torch.empty_like(down)
        of_gate, of_up = gate_up[:width], gate_up[width:]
        for rows in blocks(tokens, size):
            here, given, add = x[rows], grad[rows], int(rows.start > 0)
            gate, up, activated = kept[:, rows].unbind()
            by_product, by_gate, product = used[:, : rows.stop - rows.start].unbind()
            torch.mm(given, down, out=by_product)
            torch.mul(by_product, up, out=by_gate)
            torch.ops.aten.silu_backward.grad_input(by_gate, gate, grad_input=by_gate)
            by_down.addmm_(given.t(), torch.mul(activated, up, out=product), beta=add)
            by_up = by_product.mul_(activated)
            by_gate_up[:width].addmm_(by_gate.t(), here, beta=add)
            by_gate_up[width:].addmm_(by_up.t(), here, beta=add)
            torch.mm(by_gate, of_gate, out=by_x[rows]).addmm_(by_up, of_up)
        return by_x, by_gate_up, by_down


def gated_mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """x [..., h], gate_up [2f, h] with the rows of the gate first, down [h, f] -> [..., h], all fp32 or all fp64."""
    rows, (hidden, width) = x.reshape(-1, x.shape[-1]), down.shape
    recorded, several = needs_gradients(x, gate_up, down), rows.shape[0] > tokens_at_once(hidden)
    if recorded:
        out = (_ByBlocks if several else _AtOnce).apply(rows, gate_up, down)
    elif several:
        out = _by_blocks(rows, gate_up, down, None)
    else:
        out = F.silu(rows @ gate_up[:width].t()).mul_(rows @ gate_up[width:].t()) @ down.t()
    return out.view(x.shape)
