"""A block's design: a norm scheme with its options and its initialisation, ready to be applied to a layer spec."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import MoETransformerLayer, TransformerLayer

from megatron_cod.args import MegatronArgs
from megatron_cod.errors import UserError
from megatron_cod.schemes.depth import bind_depth_factor, depth_factor, global_layer_number
from megatron_cod.schemes.init_policy import INIT_POLICIES, resolve_init_policy
from megatron_cod.schemes.options import CommonOptions, flag_of, given, names, read_options
from megatron_cod.schemes.overlay import NormBuilder, Norms, with_joins
from megatron_cod.schemes.parameter_groups import GroupRules
from megatron_cod.schemes.residual import ResidualJoin, start_warmup
from megatron_cod.schemes.row import Scheme
from megatron_cod.schemes.table import SCHEMES, STOCK, get_scheme, takers


@dataclass(frozen=True)
class BlockDesign:
    """What every block of a model is to be. Made by ``design_from_args`` or ``plain_design``."""

    scheme: Scheme
    options: Any
    """Of the scheme's own dataclass."""
    common: CommonOptions = field(default_factory=CommonOptions)
    init_policy: str = "normal"

    @property
    def binds(self) -> bool:
        """Whether something in a layer depends on its number."""
        every = bool(self.common.gamma_init or self.common.residual_warmup_steps)
        own = self.scheme.bind is not None or self.scheme.factor is not None or bool(self.scheme.layer)
        return every or own or INIT_POLICIES[self.init_policy].rescale is not None

    @property
    def is_stock(self) -> bool:
        """Whether Megatron's own layers will do, on whatever backend."""
        return self.scheme.overlay is None and not self.binds

    @property
    def carriers(self) -> int:
        """How many modules of a block carry a depth factor."""
        return 0 if self.scheme.factor is None else self.scheme.carriers(self.options)

    @property
    def streams(self) -> int:
        """How many residual streams there are between blocks."""
        return self.scheme.streams(self.options)

    def factor(self, layer_number: int, config: Any) -> float | None:
        """What block l multiplies in its depth-scaled modules, or None under a scheme without a factor.

        layer_number: l, from 1 over the whole model. config: anything with ``num_layers``.
        """
        return None if self.scheme.factor is None else self.scheme.factor(layer_number, config, self.options)

    def final_norm(self, norms: Norms) -> NormBuilder | None:
        """What builds the model's final norm; None where the last block ends with one."""
        if not self.scheme.final_norm:
            return None
        return norms.plain if self.scheme.final is None else self.scheme.final(norms.plain, self.options)

    def group_rules(self, config: Any) -> GroupRules | None:
        """Rates, decay and eps of kinds of parameters, or None where all have the run's.

        config: anything with ``num_layers`` and ``hidden_size``.
        """
        return None if self.scheme.groups is None else self.scheme.groups(config, self.options)

    def identity(self, config: Any) -> dict[str, Any]:
        """What the function of the trained weights depends on beside their names and shapes; compared with checkpoints.

        config: anything with ``num_layers``.
        """
        return {"norm_scheme": self.scheme.name, **self.scheme.recorded(config, self.options)}

    def applied_to(self, spec: ModuleSpec, config: TransformerConfig, norms: Norms) -> ModuleSpec:
        """A layer spec under this design. UserError when its class or its norms are not ones we know."""
        if spec.module not in NUMBERED:
            raise UserError(f"--norm-scheme {self.scheme.name} does not know the layer class {spec.module.__name__}")
        submodules = spec.submodules
        if self.common.residual_warmup_steps:
            submodules = with_joins(submodules, config, ResidualJoin)
        if self.scheme.overlay is not None:
            submodules = self.scheme.overlay(submodules, config, norms, self.options)
        if not self.binds:
            return replace(spec, submodules=submodules)
        params = {**(spec.params or {}), "design": self}
        classes = {**NUMBERED, **self.scheme.layer}
        return ModuleSpec(module=classes[spec.module], params=params, submodules=submodules)

    def attach(self, chunks: list[Any]) -> list[Any]:
        """Give the built chunks of this stage what their layers share. UserError where the first one has no layer."""
        assert self.scheme.attach is not None
        if not chunks[0].decoder.layers:
            raise UserError(
                f"--norm-scheme {self.scheme.name} needs a layer in the first chunk of every pipeline stage"
            )
        layers = [(layer, global_layer_number(layer)) for chunk in chunks for layer in chunk.decoder.layers]
        self.scheme.attach(chunks[0].decoder, layers, self.options)
        return chunks

    def bind(self, layer: Any) -> None:
        """Set in a built layer what depends on its number."""
        number, config = global_layer_number(layer), layer.config
        factor = self.factor(number, config)
        if factor is not None:
            bind_depth_factor(layer, number, factor, self.carriers)
        if self.scheme.bind is not None:
            self.scheme.bind(layer, number, config, self.options)
        if self.common.residual_warmup_steps:
            start_warmup(layer, number, self.common.residual_warmup_steps)
        if self.common.gamma_init:
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
        raise UserError("--gamma-init does not support --init-model-with-meta-device; omit one")
    gamma.fill_(value)


class Numbered:
    """Mixin over Megatron's layers: once built, the layer knows its number, and the design sets what depends on it.

    Nothing of the forward is overridden: recompute, CUDA graphs, FP8 and offloading see a stock layer.
    """

    def __init__(self, *args: Any, design: BlockDesign, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with torch.no_grad():
            design.bind(self)


class SchemeTransformerLayer(Numbered, TransformerLayer):
    """Megatron's layer [s, b, h] under a design that depends on the depth."""


class SchemeMoETransformerLayer(Numbered, MoETransformerLayer):
    """Megatron's mixture-of-experts layer under such a design."""


NUMBERED: dict[type, type] = {
    TransformerLayer: SchemeTransformerLayer,
    MoETransformerLayer: SchemeMoETransformerLayer,
}


def plain_design(scheme: Scheme) -> BlockDesign:
    """A scheme without options, with its own initialisation."""
    return BlockDesign(scheme, scheme.options(), init_policy=scheme.default_init)


def design_from_record(recorded: Mapping[str, Any]) -> BlockDesign:
    """The design that ``BlockDesign.identity`` recorded; UserError for a scheme that is not registered."""
    scheme = get_scheme(str(recorded.get("norm_scheme", STOCK)))
    if scheme.options_from_record is None:
        options = scheme.options(**{name: recorded[name] for name in names(scheme.options) if name in recorded})
    else:
        options = scheme.options_from_record(recorded)
    return BlockDesign(scheme, options, init_policy=scheme.default_init)


def design_from_args(args: MegatronArgs) -> BlockDesign:
    """The design that parsed arguments ask for; UserError, naming the flags, for contradictory ones."""
    scheme = get_scheme(args.norm_scheme)
    policy = resolve_init_policy(scheme.name, args.init_policy)[0]
    _refuse_options_of_others(scheme, args)
    design = BlockDesign(scheme, read_options(scheme.options, args), read_options(CommonOptions, args), policy)
    _check_options(design, args.num_layers)
    return design


def _refuse_options_of_others(scheme: Scheme, args: MegatronArgs) -> None:
    """UserError for an option that is given and that the scheme does not take."""
    for kind in {row.options for row in SCHEMES.values()} - {scheme.options}:
        for name in given(read_options(kind, args)):
            raise UserError(
                f"{flag_of(name)} does not go with --norm-scheme {scheme.name}, only with {', '.join(takers(name))}"
            )


def _check_options(design: BlockDesign, num_layers: int | None) -> None:
    """UserError for a value that an option cannot have."""
    for one in fields(design.scheme.options):
        value, choices = getattr(design.options, one.name), one.metadata["flag"].get("choices")
        if choices is not None and value is not None and value not in choices:
            raise UserError(f"{flag_of(one.name)} {value} is none of {', '.join(choices)}")
    if design.scheme.check is not None:
        design.scheme.check(design.options, num_layers)
    if design.common.gamma_init and not design.scheme.own_gammas:
        raise UserError(f"--gamma-init does not go with --norm-scheme {design.scheme.name}: its norms have no gammas")
    steps = design.common.residual_warmup_steps
    if steps is not None and steps < 1:
        raise UserError(f"--residual-warmup-steps {steps} must be at least 1")
