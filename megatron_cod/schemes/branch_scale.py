"""Scales of the branches: a factor of the layer's; LayerScale x + diag(a) F(N(x)), SkipInit x + a F(N(x)), a learned."""

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor

from megatron_cod.schemes.depth import DepthScaled, times
from megatron_cod.schemes.options import option
from megatron_cod.schemes.overlay import Norms, with_joins
from megatron_cod.schemes.residual import ResidualJoin
from megatron_cod.schemes.row import Foldable, Scheme, Site, records_nothing

_SCALES = Foldable(
    learned={Site.ATTENTION_OUTPUT: "self_attn_bda.scale", Site.MLP_OUTPUT: "mlp_bda.scale"},
)


@dataclass(frozen=True)
class LayerScaleOptions:
    """Where LayerScale starts."""

    layerscale_init: float | None = option(
        help="start value of layerscale's vectors (default: 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 above)",
        type=float,
        metavar="A",
    )


class ScaledBranchJoin(DepthScaled, ResidualJoin):
    """x + s_l * F: the layer's factor on the branch's output."""

    def scaled(self, branch: Tensor) -> Tensor:
        return times(branch, self.factor_in_graph())


class LearnedScaleJoin(ResidualJoin):
    """x + a * F, a learned, [h] or [1]; key ``self_attn_bda.scale`` or ``mlp_bda.scale``.

    One dimension in both cases, so Megatron excludes it from weight decay.
    """

    def __init__(self, config: TransformerConfig, size: int, start: float) -> None:
        super().__init__(config)
        self.start = start
        self.scale = torch.nn.Parameter(torch.empty(size, dtype=config.params_dtype))
        # Under sequence parallelism each rank sees s/TP tokens: Megatron sums the gradients that carry this mark.
        self.scale.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start values; called again where weights are made on the meta device first."""
        torch.nn.init.constant_(self.scale, self.start)

    def scaled(self, branch: Tensor) -> Tensor:
        return branch * self.scale


def layerscale_start(config: TransformerConfig, options: LayerScaleOptions) -> float:
    """The authors' start value for a depth (Touvron et al., arXiv 2103.17239), or what the user says."""
    if options.layerscale_init is not None:
        return options.layerscale_init
    if config.num_layers <= 18:
        return 0.1
    return 1e-5 if config.num_layers <= 24 else 1e-6


def layerscale_overlay(
    submodules: TransformerLayerSubmodules, config: TransformerConfig, _norms: Norms, options: LayerScaleOptions
) -> TransformerLayerSubmodules:
    """A learned scale for every channel of each branch."""
    start = layerscale_start(config, options)
    return with_joins(submodules, config, LearnedScaleJoin, size=config.hidden_size, start=start)


def skipinit_overlay(
    submodules: TransformerLayerSubmodules, config: TransformerConfig, _norms: Norms, _options: Any
) -> TransformerLayerSubmodules:
    """One learned scale for each branch, which starts at 0 (De & Smith, arXiv 2002.10444)."""
    return with_joins(submodules, config, LearnedScaleJoin, size=1, start=0.0)


LAYERSCALE = Scheme(
    name="layerscale",
    block="x + diag(a) F(N(x)), a learned",
    reference="Touvron et al., arXiv 2103.17239",
    default_init="normal",
    options=LayerScaleOptions,
    overlay=layerscale_overlay,
    recorded=records_nothing,
    layer_parameters=lambda hidden, _norm, _options: 2 * hidden,
    stock=_SCALES,
)
SKIPINIT = Scheme(
    name="skipinit",
    block="x + a F(N(x)), a learned, from 0",
    reference="De & Smith, arXiv 2002.10444",
    default_init="normal",
    overlay=skipinit_overlay,
    layer_parameters=lambda _hidden, _norm, _options: 2,
    stock=_SCALES,
)
