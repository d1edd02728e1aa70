"""LayerRoPE: gains that all layers share, turned and scaled by the layer's number (arXiv 2610.09179).

The gain of site s in layer l: pairs (gamma_2j, gamma_2j+1) as complex numbers times exp(a + b ln l + i theta_j(l)), with
theta_j(l) = exp(a_rot + b_rot ln l) base^(-2j/h). The real vector multiplies channels; activations are not rotated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor

from megatron_cod.errors import UserError
from megatron_cod.schemes.options import option
from megatron_cod.schemes.overlay import Norms, with_joins
from megatron_cod.schemes.residual import ResidualJoin
from megatron_cod.schemes.row import Foldable, Scheme, Site
from megatron_cod.schemes.shared_gains import NAME, SharedGain, attach_shared_gains

SITES = ("attention_in", "mlp_in", "attention_out", "mlp_out")


@dataclass(frozen=True)
class LayerRopeOptions:
    """The base, and where the learned numbers start."""

    layer_rope_base: float = option(100.0, help="base of layer_rope's angles (default: 100)", type=float, metavar="B")
    layer_rope_scale: float = option(
        0.0, help="start of a, the gain's log size (default: 0)", type=float, metavar="A", negative=True
    )
    layer_rope_scale_exponent: float = option(
        -0.5,
        help="start of b: the gain's size goes with l ** b (default: -0.5)",
        type=float,
        metavar="B",
        negative=True,
    )
    layer_rope_angle: float = option(
        0.0, help="start of a_rot, the log of the angle (default: 0)", type=float, metavar="A", negative=True
    )
    layer_rope_angle_exponent: float = option(
        -0.5,
        help="start of b_rot: the angle goes with l ** b_rot (default: -0.5)",
        type=float,
        metavar="B",
        negative=True,
    )
    layer_rope_peri: bool = option(
        False, help="layer_rope's output gains are the weights of norms behind the branches, its second form"
    )

    def start(self) -> tuple[float, float, float, float]:
        """a, b, a_rot, b_rot."""
        return (
            self.layer_rope_scale,
            self.layer_rope_scale_exponent,
            self.layer_rope_angle,
            self.layer_rope_angle_exponent,
        )


def layer_gain(gamma: Tensor, numbers: Tensor, layer: int, base: float) -> Tensor:
    """gamma [h], numbers [4] (a, b, a_rot, b_rot) -> the gain [h] of layer l, from 1."""
    a, b, a_rot, b_rot = numbers.unbind()
    log_layer = math.log(layer)
    pairs = gamma.unflatten(0, (-1, 2))
    places = torch.arange(len(pairs), device=gamma.device, dtype=gamma.dtype)
    angle = torch.exp(a_rot + b_rot * log_layer) * torch.pow(base, -2 * places / len(gamma))
    size = torch.exp(a + b * log_layer)
    real, imaginary = pairs.unbind(1)
    cos, sin = size * torch.cos(angle), size * torch.sin(angle)
    return torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=1).flatten()


class _TakesGain:
    """Mixin of the modules of a layer that multiply by a shared gain."""

    # In a tuple: the chunk owns the gain, and it must not be registered a second time here.
    _gain: tuple[SharedGain, ...] = ()
    _layer = 0
    _base = 0.0

    def take(self, gain: SharedGain, layer: int, base: float) -> None:
        """Use this gain, as it is in layer l."""
        self._gain, self._layer, self._base = (gain,), layer, base

    def gain(self, like: Tensor) -> Tensor:
        """[h] in the dtype of the activations; RuntimeError where no gain was given."""
        if not self._gain:
            raise RuntimeError(f"{type(self).__name__} was never given a shared gain")
        [shared] = self._gain
        found = layer_gain(shared.gamma.float(), shared.numbers.float(), self._layer, self._base)
        return found.to(like.dtype)


class SharedGainNorm(_TakesGain, torch.nn.Module):
    """RMS norm [s, b, h] whose weight is a shared gain."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.shape, self.eps = (hidden_size,), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.shape, self.gain(x), self.eps)


class SharedGainJoin(_TakesGain, ResidualJoin):
    """x + g F, or with ``peri`` x + g N(F)."""

    def __init__(self, config: TransformerConfig, peri: bool) -> None:
        super().__init__(config)
        self.peri = peri

    def scaled(self, branch: Tensor) -> Tensor:
        if self.peri:
            return F.rms_norm(branch, branch.shape[-1:], self.gain(branch), self.config.layernorm_epsilon)
        return branch * self.gain(branch)


def layer_rope_overlay(
    submodules: TransformerLayerSubmodules, config: TransformerConfig, norms: Norms, options: LayerRopeOptions
) -> TransformerLayerSubmodules:
    """Norms and joins that take shared gains."""
    unfused = replace(norms.deferred(submodules), input_layernorm=SharedGainNorm, pre_mlp_layernorm=SharedGainNorm)
    return with_joins(unfused, config, SharedGainJoin, peri=options.layer_rope_peri)


def _attach(decoder: Any, layers: list[tuple[Any, int]], options: LayerRopeOptions) -> None:
    gains = attach_shared_gains(decoder, dict.fromkeys(SITES, options.start()))
    for layer, number in layers:
        takers = (layer.input_layernorm, layer.pre_mlp_layernorm, layer.self_attn_bda, layer.mlp_bda)
        for site, taker in zip(SITES, takers, strict=True):
            taker.take(getattr(gains, site), number, options.layer_rope_base)


_AT = {
    Site.ATTENTION_NORM: "attention_in",
    Site.MLP_NORM: "mlp_in",
    Site.ATTENTION_OUTPUT: "attention_out",
    Site.MLP_OUTPUT: "mlp_out",
}
_AT_PERI = {
    Site.ATTENTION_NORM: "attention_in",
    Site.MLP_NORM: "mlp_in",
    Site.ATTENTION_BRANCH_NORM: "attention_out",
    Site.MLP_BRANCH_NORM: "mlp_out",
}


def _stock_gain(shared: Mapping[str, Tensor], site: Site, layer: int, options: LayerRopeOptions) -> Tensor | None:
    at = _AT_PERI if options.layer_rope_peri else _AT
    if site not in at:
        return None
    gamma, numbers = (shared[f"{NAME}.{at[site]}.{name}"].float() for name in ("gamma", "numbers"))
    return layer_gain(gamma, numbers, layer, options.layer_rope_base)


def _unsupported(config: TransformerConfig, _backend: str, _options: Any) -> list[str]:
    asked = {
        "--normalization LayerNorm (its gains are those of RMSNorm)": config.normalization != "RMSNorm",
        "--apply-layernorm-1p (there is no gamma of a layer's own)": config.layernorm_zero_centered_gamma,
        "--hidden-size (odd: gains are taken in pairs)": config.hidden_size % 2,
        "--mtp-num-layers (its layers are on other stages)": config.mtp_num_layers,
        "--cuda-graph-impl (a layer's graph knows its own parameters only)": config.cuda_graph_impl != "none",
    }
    return [text for text, is_asked in asked.items() if is_asked]


def _check(options: LayerRopeOptions, _layers: int | None) -> None:
    if not (options.layer_rope_base > 1 and math.isfinite(options.layer_rope_base)):
        raise UserError(f"--layer-rope-base {options.layer_rope_base} must be above 1")


LAYER_ROPE = Scheme(
    name="layer_rope",
    block="x + g_out(l) F(g_in(l) N(x)), g shared by all layers, turned and scaled with l",
    reference="LayerRoPE, arXiv 2610.09179",
    default_init="normal",
    options=LayerRopeOptions,
    overlay=layer_rope_overlay,
    attach=_attach,
    own_gammas=False,
    check=_check,
    recorded=lambda _config, options: {
        "layer_rope_base": options.layer_rope_base,
        "layer_rope_peri": options.layer_rope_peri,
    },
    layer_parameters=lambda _hidden, norm, _options: -2 * norm,
    stage_parameters=lambda hidden: len(SITES) * (hidden + 4),
    unsupported=_unsupported,
    stock=Foldable(
        shared=tuple(f"{NAME}.{site}.{name}" for site in SITES for name in ("gamma", "numbers")),
        gain=_stock_gain,
        branch_norms=lambda options: options.layer_rope_peri,
    ),
    one_graph=False,
)
