"""A short forward for plain layers on the host: norm, branch and residual sum.

Megatron's forward checks in every call for features that few layers use (inference kernels, offloading, recomputation of a
part, cross attention); at small sizes that takes 0.4 ms of a layer's 12. Here the check is made once, when the model is
built. Layers that use such a feature keep Megatron's forward, and so does a call with arguments of such a feature.
"""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.identity_op import IdentityFuncOp, IdentityOp
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.utils import make_viewless_tensor
from torch import Tensor

from megatron_cod.backends.torch_self_attention import TorchSelfAttention

METHODS = ("forward", "_forward_attention", "_forward_mlp", "_forward_pre_mlp_layernorm", "_forward_post_mlp")
_STOCK: dict[str, Any] = {name: getattr(TransformerLayer, name) for name in METHODS}

OF_LAYER = (
    *("recompute_input_layernorm", "recompute_pre_mlp_layernorm", "recompute_mlp"),
    *("offload_attn_norm", "offload_mlp_norm", "is_moe_layer"),
)
"""What a plain layer does not do, by the attribute of the layer that asks for it."""
OF_CONFIG = {
    "fp32_residual_connection": False,
    "mlp_chunks_for_prefill": 1,
    "mlp_chunks_for_training": 1,
    "inference_fuse_tp_communication": False,
}
"""The same by fields of the configuration, with the value that asks for nothing."""


def is_plain(layer: Any) -> bool:
    """Whether Megatron's forward of this built layer does what ``PlainForward`` does, and nothing else."""
    if any(getattr(type(layer), name, None) is not stock for name, stock in _STOCK.items()):
        return False
    absent = (layer.pre_cross_attn_layernorm, IdentityOp), (layer.cross_attn_bda, IdentityFuncOp)
    if any(type(module) is not kind for module, kind in (*absent, (layer.cross_attention, IdentityOp))):
        return False
    if any(getattr(layer, name) for name in OF_LAYER):
        return False
    return all(getattr(layer.config, name) == value for name, value in OF_CONFIG.items())


def _joined(layer: Any, join: Any, branch_and_bias: tuple[Tensor, Tensor | None], residual: Tensor) -> Tensor:
    """The new residual stream [s, b, h]; what Megatron's join is without bias and dropout, a sum, is written out."""
    branch, bias = branch_and_bias
    if join is not get_bias_dropout_add or bias is not None or layer.hidden_dropout or branch.dtype != residual.dtype:
        return join(layer.training, layer.config.bias_dropout_fusion)(branch_and_bias, residual, layer.hidden_dropout)
    recorded = branch.requires_grad or residual.requires_grad
    return residual + branch if layer.training or recorded else branch.add_(residual)


class PlainForward:
    """A layer's ``forward``; Megatron's where a call has other arguments than these."""

    def __init__(self, layer: Any) -> None:
        """layer: one that ``is_plain``."""
        self._layer = layer
        self._megatrons: Callable[..., Any] = layer.forward

    def __call__(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: Any = None,
        packed_seq_params: Any = None,
        padding_mask: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """hidden_states [s, b, h] -> ([s, b, h], None)."""
        if any(value is not None for value in others.values()):
            others |= {"attention_mask": attention_mask, "rotary_pos_emb": rotary_pos_emb}
            others |= {"packed_seq_params": packed_seq_params, "padding_mask": padding_mask}
            return self._megatrons(hidden_states, **others)
        layer = self._layer
        branch = layer.self_attention(
            layer.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            rotary_pos_emb=rotary_pos_emb,
            packed_seq_params=packed_seq_params,
        )
        hidden_states = _joined(layer, layer.self_attn_bda, branch, hidden_states)
        branch = layer.mlp(layer.pre_mlp_layernorm(hidden_states), padding_mask=padding_mask)
        out = _joined(layer, layer.mlp_bda, branch, hidden_states)
        return make_viewless_tensor(out, out.requires_grad, keep_graph=True), None


def use_plain_forward(model: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """Give the plain layers of these chunks the short forward (a ``pre_wrap_hook``, for runs on the host)."""
    for chunk in model:
        for module in chunk.modules():
            ours = isinstance(module, TransformerLayer) and isinstance(module.self_attention, TorchSelfAttention)
            if ours and is_plain(module):
                module.forward = PlainForward(module)  # type: ignore[method-assign, assignment]
    return model
