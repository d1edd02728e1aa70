"""LayerNorm Scaling: x + F(l^-1/2 * Norm(x)) for the attention and the MLP branch of block l (arXiv 2502.05795)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from megatron_cod.schemes.branch_scale import ScaledBranchJoin
from megatron_cod.schemes.depth import DEPTH_EXPONENT, depth_factor
from megatron_cod.schemes.options import option
from megatron_cod.schemes.overlay import Norms, with_joins
from megatron_cod.schemes.router import bind_router, with_unscaled_router
from megatron_cod.schemes.row import NORM_SITES, OUTPUT_SITES, Foldable, Scheme, Site

_SITES = {
    "both": NORM_SITES,
    "attention": (Site.ATTENTION_NORM,),
    "mlp": (Site.MLP_NORM,),
    "branch_output": OUTPUT_SITES,
}


@dataclass(frozen=True)
class LNSOptions:
    """Ablations of LNS (the paper's table 8, and other powers)."""

    lns_placement: str | None = option(
        help="where lns puts its factor: on both input norms (default), on one of them, or on the branch outputs",
        choices=tuple(_SITES),
    )
    lns_exponent: float | None = option(help="the factor of lns is l ** -E (default: 0.5)", type=float, metavar="E")
    lns_router: str | None = option(
        help="whether the router of experts reads the norm with its factor (scaled, the default: its logits fall with "
        "depth) or without",
        choices=("scaled", "unscaled"),
    )


def _placement(options: LNSOptions) -> str:
    return options.lns_placement or "both"


def _router(options: LNSOptions) -> str:
    return options.lns_router or "scaled"


def _exponent(options: LNSOptions) -> float:
    return DEPTH_EXPONENT if options.lns_exponent is None else -options.lns_exponent


def lns_factor(layer_number: int, _config: Any, options: LNSOptions) -> float:
    """1/sqrt(l), or the power that the options ask for."""
    return depth_factor(layer_number, _exponent(options))


def lns_overlay(
    submodules: TransformerLayerSubmodules, config: TransformerConfig, norms: Norms, options: LNSOptions
) -> TransformerLayerSubmodules:
    """Depth-scaled norms, or with ``branch_output`` depth-scaled joins."""
    placement = _placement(options)
    if placement == "branch_output":
        return with_joins(submodules, config, ScaledBranchJoin)
    scaled = norms.depth_scaled(submodules, ("attention", "mlp") if placement == "both" else (placement,))
    return with_unscaled_router(scaled) if _router(options) == "unscaled" else scaled


def _bind(layer: Any, number: int, config: TransformerConfig, options: LNSOptions) -> None:
    if _router(options) == "unscaled":
        bind_router(layer, lns_factor(number, config, options))


def _unsupported(config: TransformerConfig, _backend: str, options: LNSOptions) -> list[str]:
    if _router(options) == "unscaled" and config.num_moe_experts is None:
        return ["--lns-router unscaled (without --num-experts there is no router)"]
    if _router(options) == "unscaled" and Site.MLP_NORM not in _SITES[_placement(options)]:
        return [f"--lns-router unscaled with --lns-placement {_placement(options)} (the norm before it has no factor)"]
    return []


def _recorded(_config: Any, options: LNSOptions) -> dict[str, Any]:
    return {"scheme_exponent": _exponent(options), "lns_placement": _placement(options), "lns_router": _router(options)}


def _options_from_record(recorded: Mapping[str, Any]) -> LNSOptions:
    exponent = float(recorded.get("scheme_exponent", DEPTH_EXPONENT))
    return LNSOptions(
        lns_placement=recorded.get("lns_placement") or "both",
        lns_exponent=-exponent,
        lns_router=recorded.get("lns_router") or "scaled",
    )


LNS = Scheme(
    name="lns",
    block="x + F(N(x) / sqrt(l))",
    reference="Sun et al., arXiv 2502.05795",
    default_init="normal",
    options=LNSOptions,
    overlay=lns_overlay,
    factor=lns_factor,
    carriers=lambda options: len(_SITES[_placement(options)]),
    bind=_bind,
    unsupported=_unsupported,
    recorded=_recorded,
    options_from_record=_options_from_record,
    stock=Foldable(
        sites=lambda options: _SITES[_placement(options)],
        divided=lambda options: (Site.ROUTER,) if _router(options) == "unscaled" else (),
    ),
    notes={"scaled": "the paper measures LNS with it as worse than LNS without (20.79 against 20.35 at 250M)"},
)
