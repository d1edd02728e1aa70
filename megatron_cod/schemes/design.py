"""A block's design: a norm scheme with its options and its initialisation, ready to be laid over a layer spec."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import MoETransformerLayer, TransformerLayer

from megatron_cod.schemes.depth import depth_factor, global_layer_number
from megatron_cod.schemes.init_policy import INIT_POLICIES, resolve_init_policy
from megatron_cod.schemes.options import PLACEMENTS, WITH_EVERY_SCHEME, SchemeOptions, flag_of, options_from_args
from megatron_cod.schemes.overlay import Norms, with_joins
from megatron_cod.schemes.post_norm import post_layers
from megatron_cod.schemes.residual import ResidualJoin, start_warmup
from megatron_cod.schemes.table import Scheme, get_scheme, takers


@dataclass(frozen=True)
class BlockDesign:
    """What every block of a model is to be."""

    scheme: Scheme
    options: SchemeOptions = field(default_factory=SchemeOptions)
    init_policy: str = "normal"

    @property
    def binds(self) -> bool:
        """Whether something in a layer depends on its number."""
        every = bool(self.options.gamma_init or self.options.residual_warmup_steps)
        return every or self.scheme.bind is not None or INIT_POLICIES[self.init_policy].rescale is not None

    @property
    def is_stock(self) -> bool:
        """Whether Megatron's own layers will do, on whatever backend."""
        return self.scheme.overlay is None and not self.binds

    @property
    def exponent(self) -> float:
        """The power of l that multiplies what block l normalises."""
        return self.scheme.exponent(self.options)

    @property
    def carriers(self) -> int:
        """How many modules of a block carry a depth factor."""
        return self.scheme.carriers(self.options)

    def identity(self, config: Any) -> dict[str, Any]:
        """What the function of the trained weights depends on beside their names and shapes; checkpoints are held to it.

        config: anything with ``num_layers``.
        """
        found: dict[str, Any] = {"norm_scheme": self.scheme.name, "scheme_exponent": self.exponent}
        if "lns_placement" in self.scheme.options:
            found["lns_placement"] = self.options.lns_placement or "both"
        if "mix_ln_post_layers" in self.scheme.options:
            found["mix_ln_post_layers"] = post_layers(config, self.options)
        return found

    def laid_over(self, spec: ModuleSpec, config: TransformerConfig, norms: Norms) -> ModuleSpec:
        """A layer spec under this design. ValueError when its class or its norms are not ones we know."""
        if spec.module not in NUMBERED:
            raise ValueError(f"--norm-scheme {self.scheme.name} does not know the layer class {spec.module.__name__}")
        submodules = spec.submodules
        if self.options.residual_warmup_steps:
            submodules = with_joins(submodules, config, ResidualJoin)
        if self.scheme.overlay is not None:
            submodules = self.scheme.overlay(submodules, config, norms, self.options)
        if not self.binds:
            return replace(spec, submodules=submodules)
        params = {**(spec.params or {}), "design": self}
        return ModuleSpec(module=NUMBERED[spec.module], params=params, submodules=submodules)

    def bind(self, layer: Any) -> None:
        """Set in a built layer what depends on its number."""
        number, config = global_layer_number(layer), layer.config
        if self.scheme.bind is not None:
            self.scheme.bind(layer, number, config, self.options)
        if self.options.residual_warmup_steps:
            start_warmup(layer, number, self.options.residual_warmup_steps)
        if self.options.gamma_init:
            for gamma in input_gammas(layer):
                _start_from(gamma, depth_factor(number) - config.layernorm_zero_centered_gamma)
        rescale = INIT_POLICIES[self.init_policy].rescale
        if rescale is not None:
            rescale(layer, number, config)


def input_gammas(layer: Any) -> list[torch.Tensor]:
    """The gammas [h] of a layer's two input norms, which may be fused with the linear behind them.

    RuntimeError unless there are two.
    """
    attention, mlp = layer.self_attention, layer.mlp
    fused = [getattr(attention, name, None) for name in ("linear_qkv", "linear_qkv_down_proj")]
    holders: list[tuple[Any, list[Any]]] = [
        (layer.input_layernorm, fused),
        (layer.pre_mlp_layernorm, [getattr(mlp, "linear_fc1", None)]),
    ]
    found = []
    for norm, linears in holders:
        if not isinstance(norm, IdentityOp):
            found.append(norm.weight)
        else:
            found += [linear.layer_norm_weight for linear in linears if hasattr(linear, "layer_norm_weight")]
    if len(found) != 2:
        raise RuntimeError(f"layer {layer.layer_number} has {len(found)} input norms, expected 2")
    return found


def _start_from(gamma: torch.Tensor, value: float) -> None:
    if gamma.is_meta:
        raise ValueError("--gamma-init does not support --init-model-with-meta-device; leave one out")
    gamma.fill_(value)


class _Numbered:
    """Mixin over Megatron's layers: once built, the layer knows its number, and the design sets what depends on it.

    Nothing of the forward is overridden: recompute, CUDA graphs, FP8 and offloading see a stock layer.
    """

    def __init__(self, *args: Any, design: BlockDesign, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with torch.no_grad():
            design.bind(self)


class SchemeTransformerLayer(_Numbered, TransformerLayer):
    """Megatron's layer [s, b, h] under a design that depends on the depth."""


class SchemeMoETransformerLayer(_Numbered, MoETransformerLayer):
    """Megatron's mixture-of-experts layer under such a design."""


NUMBERED: dict[type, type] = {
    TransformerLayer: SchemeTransformerLayer,
    MoETransformerLayer: SchemeMoETransformerLayer,
}


def design_from_args(args: Any) -> BlockDesign:
    """The design that parsed arguments ask for; ValueError, naming the flags, for contradictory ones."""
    scheme, options = get_scheme(args.norm_scheme), options_from_args(args)
    policy = resolve_init_policy(scheme.name, args.init_policy)[0]
    check_options(scheme, options, args.num_layers)
    return BlockDesign(scheme, options, policy)


def check_options(scheme: Scheme, options: SchemeOptions, num_layers: int | None) -> None:
    """ValueError for an option that the scheme does not take, or a value it cannot have."""
    for name in options.given():
        if name not in (*scheme.options, *WITH_EVERY_SCHEME):
            raise ValueError(
                f"{flag_of(name)} does not go with --norm-scheme {scheme.name}, only with {', '.join(takers(name))}"
            )
    if options.lns_placement is not None and options.lns_placement not in PLACEMENTS:
        raise ValueError(f"--lns-placement {options.lns_placement} is none of {', '.join(PLACEMENTS)}")
    layers = options.mix_ln_post_layers
    if layers is not None and (layers < 0 or (num_layers is not None and layers > num_layers)):
        raise ValueError(f"--mix-ln-post-layers {layers} must be between 0 and --num-layers {num_layers}")
    if options.residual_warmup_steps is not None and options.residual_warmup_steps < 1:
        raise ValueError(f"--residual-warmup-steps {options.residual_warmup_steps} must be at least 1")
