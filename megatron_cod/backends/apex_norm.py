"""Megatron's LayerNorm on NVIDIA Apex's kernels, with a depth factor. Not PyPI's ``apex``, another project altogether."""

from typing import Any

import torch
from megatron.core.fusions.fused_layer_norm import FusedLayerNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_cod.backends.gain import scaled_gain, shadowed
from megatron_cod.errors import UserError
from megatron_cod.schemes.depth import DepthScaled
from megatron_cod.schemes.post_norm import Deferred


class DepthScaledApexLayerNorm(DepthScaled, FusedLayerNorm):
    """depth_factor * LayerNorm(x), [..., h], on the persistent kernel or the other, as Megatron picks."""

    def forward(self, input: Tensor) -> Tensor:
        factor = self.bound_factor()
        values: dict[str, Any] = {
            "weight": scaled_gain(self.weight, factor, self.zero_centered_gamma),
            "bias": self.bias * factor,
            "zero_centered_gamma": False,
        }
        with shadowed(self, values):
            return super().forward(input)


class DeferredApexLayerNorm(Deferred, FusedLayerNorm):
    """LayerNorm before the branch, or after the residual sum."""


def _checked(config: TransformerConfig) -> TransformerConfig:
    if config.normalization != "LayerNorm":
        raise UserError(f"Apex has LayerNorm, not --normalization {config.normalization}; use --backend torch")
    return config


def apex_norm(config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> torch.nn.Module:
    """A plain norm: Megatron's own (a ``LayerNormBuilder``)."""
    return FusedLayerNorm(_checked(config), hidden_size, eps)


def depth_scaled_apex_norm(config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> torch.nn.Module:
    """A norm that carries a depth factor, to be bound by its layer (a ``LayerNormBuilder``)."""
    return DepthScaledApexLayerNorm(_checked(config), hidden_size, eps)


def deferred_apex_norm(config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> torch.nn.Module:
    """A norm that its block may apply after the residual sum (a ``LayerNormBuilder``)."""
    return DeferredApexLayerNorm(_checked(config), hidden_size, eps)
