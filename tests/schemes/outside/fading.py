"""x + F(f_l N(x)) for attention, x + a F(f_l N(x)) for the MLP: f_l = 1 / (1 + c l / L), a learned, one for each layer."""

from dataclasses import dataclass, replace

from megatron.core.transformer.spec_utils import ModuleSpec

from megatron_cod.schemes.branch_scale import LearnedScaleJoin
from megatron_cod.schemes.options import option
from megatron_cod.schemes.overlay import depth_scaled_norms
from megatron_cod.schemes.row import NORM_SITES, Foldable, Scheme, Site
from megatron_cod.schemes.table import register_scheme


@dataclass(frozen=True)
class FadingOptions:
    fading_rate: float = option(1.0, help="c of fading: how fast its norms fade (default: 1)", type=float, metavar="C")


def fading_factor(layer_number, config, options):
    return 1 / (1 + options.fading_rate * layer_number / config.num_layers)


def fading_overlay(submodules, config, norms, options):
    scaled = depth_scaled_norms(submodules, config, norms, options)
    return replace(scaled, mlp_bda=ModuleSpec(LearnedScaleJoin, {"config": config, "size": 1, "start": 1.0}))


register_scheme(
    Scheme(
        name="fading",
        block="x + a F(N(x) / (1 + c l/L))",
        reference="docs/schemes.md",
        default_init="normal",
        options=FadingOptions,
        overlay=fading_overlay,
        factor=fading_factor,
        layer_parameters=lambda hidden, norm, options: 1,
        stock=Foldable(sites=lambda options: NORM_SITES, learned={Site.MLP_OUTPUT: "mlp_bda.scale"}),
    )
)
