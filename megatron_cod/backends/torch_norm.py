"""RMSNorm and LayerNorm on torch's own kernels, with sequence parallelism, zero-centred gamma and a depth factor.

Megatron's ``WrappedTorchNorm`` refuses the first two. The depth factor multiplies gamma (and beta), vectors of length
h, inside the forward: autograd then gives gamma the gradient of the formula, and no kernel of activation size is added.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_cod.backends.gain import scaled_gain
from megatron_cod.backends.torch_rms_norm import rms_norm
from megatron_cod.errors import UserError
from megatron_cod.schemes.depth import DepthScaled, times
from megatron_cod.schemes.post_norm import Deferred


def _rms_norm(x: Tensor, norm: torch.nn.RMSNorm, gain: Tensor) -> Tensor:
    """gain [h] * x / rms(x), in gain's dtype: with --fp32-residual-connection x is wider than the weights."""
    if x.dtype == gain.dtype:  # on the host a conversion to the same dtype is not free
        return rms_norm(x, gain, norm.eps)
    return rms_norm(x, gain.to(x.dtype), norm.eps).to(gain.dtype)


def _layer_norm(x: Tensor, norm: torch.nn.LayerNorm, gain: Tensor, shift: Tensor) -> Tensor:
    """gain [h] * (x - mean) / std + shift [h], in gain's dtype."""
    return F.layer_norm(x, norm.normalized_shape, gain.to(x.dtype), shift.to(x.dtype), norm.eps).to(gain.dtype)


class _FromConfig:
    """Mixin over torch's norms: built as Megatron builds norms, gamma starting from what the config calls 1."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        self.zero_centered = config.layernorm_zero_centered_gamma
        super().__init__(hidden_size, eps=eps)  # type: ignore[call-arg]
        for parameter in self.parameters(recurse=False):  # type: ignore[attr-defined]
            # Under sequence parallelism each rank's norm sees s/TP tokens: Megatron reduces gradients with this mark.
            parameter.sequence_parallel = config.sequence_parallel

    def reset_parameters(self) -> None:
        super().reset_parameters()  # type: ignore[misc]
        if self.zero_centered:
            torch.nn.init.zeros_(self.weight)  # type: ignore[attr-defined]


class TorchRMSNorm(_FromConfig, torch.nn.RMSNorm):
    """RMSNorm over the last dimension of [..., h]."""

    def forward(self, x: Tensor) -> Tensor:
        return _rms_norm(x, self, scaled_gain(self.weight, None, self.zero_centered))


class DepthScaledTorchRMSNorm(DepthScaled, TorchRMSNorm):
    """depth_factor * RMSNorm(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return _rms_norm(x, self, scaled_gain(self.weight, self.factor_in_graph(), self.zero_centered))


class TorchLayerNorm(_FromConfig, torch.nn.LayerNorm):
    """LayerNorm over the last dimension of [..., h]."""

    def forward(self, x: Tensor) -> Tensor:
        return _layer_norm(x, self, scaled_gain(self.weight, None, self.zero_centered), self.bias)


class DepthScaledTorchLayerNorm(DepthScaled, TorchLayerNorm):
    """depth_factor * LayerNorm(x): beta is scaled with gamma, since the whole norm output is."""

    def forward(self, x: Tensor) -> Tensor:
        factor = self.factor_in_graph()
        return _layer_norm(x, self, scaled_gain(self.weight, factor, self.zero_centered), times(self.bias, factor))


class DeferredTorchRMSNorm(Deferred, TorchRMSNorm):
    """RMSNorm before the branch, or after the residual sum."""


class DeferredTorchLayerNorm(Deferred, TorchLayerNorm):
    """LayerNorm before the branch, or after the residual sum."""


_PLAIN = {"RMSNorm": TorchRMSNorm, "LayerNorm": TorchLayerNorm}
_SCALED = {"RMSNorm": DepthScaledTorchRMSNorm, "LayerNorm": DepthScaledTorchLayerNorm}
_DEFERRED = {"RMSNorm": DeferredTorchRMSNorm, "LayerNorm": DeferredTorchLayerNorm}


def _pick(table: Mapping[str, type], config: TransformerConfig) -> type:
    if config.normalization not in table:
        raise UserError(f"the torch backend has {' and '.join(table)}, not --normalization {config.normalization}")
    return table[config.normalization]


def torch_norm(config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> torch.nn.Module:
    """A plain norm: Megatron's own torch norm where it works, ours where that one refuses (a ``LayerNormBuilder``).

    Its RMSNorm is torch's, which is slow on the host: that one is always ours.
    """
    refused = config.sequence_parallel or config.layernorm_zero_centered_gamma or config.persist_layer_norm
    if refused or config.fp32_residual_connection or config.normalization == "RMSNorm":
        return _pick(_PLAIN, config)(config, hidden_size, eps)
    return WrappedTorchNorm(config=config, hidden_size=hidden_size, eps=eps)


def depth_scaled_torch_norm(config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> torch.nn.Module:
    """A norm that carries a depth factor, to be bound by its layer (a ``LayerNormBuilder``)."""
    return _pick(_SCALED, config)(config, hidden_size, eps)


def deferred_torch_norm(config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> torch.nn.Module:
    """A norm that its block may apply after the residual sum (a ``LayerNormBuilder``)."""
    return _pick(_DEFERRED, config)(config, hidden_size, eps)
