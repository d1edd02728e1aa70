"""Transformer Engine's fused norm and linear with a depth factor. Import this only where it is installed."""

from typing import Any

from megatron.core.extensions.transformer_engine import (
    TEFusedMLP,
    TEFusedMLPWithGroupedLinear,
    TELayerNormColumnParallelLinear,
)
from torch import Tensor

from megatron_cod.backends.gain import scaled_gain, shadowed
from megatron_cod.backends.te_norm import scale_norm_in_chain
from megatron_cod.schemes.depth import DepthScaled


class DepthScaledTELayerNormColumnParallelLinear(DepthScaled, TELayerNormColumnParallelLinear):
    """Linear(depth_factor * Norm(x)) in Transformer Engine's fused kernels, FP8 included.

    Its forward reads gamma once and hands it to the autograd function as a tensor, so it may as well be s * gamma:
    autograd gives gamma the gradient of the formula.
    """

    def forward(self, x: Tensor) -> Any:
        """x [s, b, h] -> (output [s, b, n], bias or None)."""
        factor = self.bound_factor()
        values: dict[str, Any] = {
            "layer_norm_weight": scaled_gain(self.layer_norm_weight, factor, self.zero_centered_gamma),
            "zero_centered_gamma": False,
        }
        if self.layer_norm_bias is not None:
            values["layer_norm_bias"] = self.layer_norm_bias * factor
        with shadowed(self, values):
            return super().forward(x)


class DepthScaledTEFusedMLP(TEFusedMLP):
    """``--use-transformer-engine-op-fuser``: the MLP as one chain of operations.

    The chain never calls ``linear_fc1``: it has a norm of its own on fc1's gamma, which gets fc1's factor.
    """

    def _make_fused_impl(self) -> Any:
        chain = super()._make_fused_impl()
        scale_norm_in_chain(chain, self.linear_fc1.bound_factor())
        return chain


class DepthScaledTEFusedMLPWithGroupedLinear(TEFusedMLPWithGroupedLinear):
    """``--use-grouped-gemm-for-dense-mlp``: the same; without tensor parallelism the norm is a chain before the other."""

    def _make_fused_impl(self) -> Any:
        chain = super()._make_fused_impl()
        holds_norm = chain if self._norm_seq is None else self._norm_seq[0]
        scale_norm_in_chain(holds_norm, self.linear_fc1.bound_factor())
        return chain
