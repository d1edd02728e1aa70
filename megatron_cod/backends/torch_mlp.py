"""Megatron's MLP on the torch backend: its own code, but for SwiGLU, whose gradients are written where they belong.

Megatron takes gate and up apart by ``chunk``, or by a fusion that only a compiler makes one: the backward of either
concatenates their gradients, one more pass over the widest activation of a layer.
"""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_cod.backends.torch_gated_mlp import gated_mlp
from megatron_cod.backends.torch_linear import are_plain_products


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        activated = F.silu(gate)
        ctx.save_for_backward(gate_up, activated)
        return activated * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        gate_up, activated = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        result = torch.empty_like(gate_up)
        by_gate, by_up = result.chunk(2, -1)
        torch.mul(grad, activated, out=by_up)
        torch.mul(grad, up, out=by_gate)
        torch.ops.aten.silu_backward.grad_input(by_gate, gate, grad_input=by_gate)
        return result


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up; [..., 2f], gate first -> [..., f]."""
    if torch.compiler.is_compiling():
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up
    return _SwiGLU.apply(gate_up)


def _is_plain_swiglu(config: TransformerConfig) -> bool:
    """A gated unit of silu, without the offset and the clamps of other models, and not of Transformer Engine."""
    return (
        config.gated_linear_unit
        and config.activation_func is F.silu
        and config.glu_linear_offset == 0.0
        and config.activation_func_clamp_value is None
        and not config.activation_func_fp8_input_store
        and not config.use_te_activation_func
    )


class TorchMLP(MLP):
    """MLP with ``swiglu`` in place of Megatron's, on the host and on GPUs where Megatron's fusion is off."""

    def forward(self, hidden_states: Tensor, per_token_scale: Tensor | None = None, **named: Any) -> Any:
        """As Megatron's: [s, b, h] -> ([s, b, h], bias [h] or None)."""
        fused = self.config.bias_activation_fusion and hidden_states.is_cuda
        if fused or per_token_scale is not None or not _is_plain_swiglu(self.config):
            return super().forward(hidden_states, per_token_scale, **named)
        first, second = self.linear_fc1, self.linear_fc2
        if are_plain_products(hidden_states, first, second):
            return gated_mlp(hidden_states, first.weight, second.weight), None
        gate_up, bias = first(hidden_states)
        return second(swiglu(gate_up if bias is None else gate_up + bias))
