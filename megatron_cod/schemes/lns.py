"""LayerNorm Scaling: x + F(l^-1/2 * Norm(x)) for the attention and the MLP branch of block l (arXiv 2502.05795)."""

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor

from megatron_cod.schemes.depth import DEPTH_EXPONENT, DepthScaled, depth_factor, depth_scaled_modules
from megatron_cod.schemes.options import SchemeOptions
from megatron_cod.schemes.overlay import Norms, with_joins
from megatron_cod.schemes.residual import ResidualJoin


class ScaledBranchJoin(DepthScaled, ResidualJoin):
    """x + s_l * F(Norm(x)): the factor on the branch's output, as the authors do for vision (placement ablation)."""

    def scaled(self, branch: Tensor) -> Tensor:
        return branch * self.bound_factor()


def lns_exponent(options: SchemeOptions) -> float:
    """The power of l that the factor is."""
    return DEPTH_EXPONENT if options.lns_exponent is None else -options.lns_exponent


def lns_carriers(options: SchemeOptions) -> int:
    """How many modules of a block carry the factor."""
    return 1 if options.lns_placement in ("attention", "mlp") else 2


def lns_overlay(
    submodules: TransformerLayerSubmodules, config: TransformerConfig, norms: Norms, options: SchemeOptions
) -> TransformerLayerSubmodules:
    """Depth-scaled norms, or with ``branch_output`` depth-scaled joins."""
    placement = options.lns_placement or "both"
    if placement == "branch_output":
        return with_joins(submodules, config, ScaledBranchJoin)
    return norms.depth_scaled(submodules, ("attention", "mlp") if placement == "both" else (placement,))


def bind_depth_factor(
    layer: torch.nn.Module, layer_number: int, _config: Any = None, options: SchemeOptions | None = None
) -> None:
    """Give the modules of a block that carry the factor theirs; RuntimeError unless they are as many as there must be.

    The attention-input norm and the MLP-input norm carry it (METHOD: "one factor per block, the same for both"), unless
    ``--lns-placement`` says otherwise.
    """
    options = options or SchemeOptions()
    expected = lns_carriers(options)
    carriers = depth_scaled_modules(layer)
    if len(carriers) != expected:
        raise RuntimeError(f"layer {layer_number} has {len(carriers)} depth-scaled modules, expected {expected}")
    for carrier in carriers:
        carrier.depth_factor = depth_factor(layer_number, lns_exponent(options))
