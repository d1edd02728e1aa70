"""Norms after the residual sum: Post-LN, Mix-LN, DeepNorm.

The norm keeps Megatron's name and place (``input_layernorm`` belongs to the attention branch, ``pre_mlp_layernorm`` to
the MLP's), so that checkpoint keys are the same in every block of Mix-LN and over layouts. Where a block is Post-LN, the
layer's call of it passes the stream through, and the join applies it to the sum.
"""

from dataclasses import dataclass
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor

from megatron_cod.errors import UserError
from megatron_cod.schemes.options import option
from megatron_cod.schemes.overlay import Norms, with_joins
from megatron_cod.schemes.residual import ResidualJoin
from megatron_cod.schemes.row import NotFoldable, Scheme


@dataclass(frozen=True)
class MixLNOptions:
    """How many blocks of Mix-LN are Post-LN."""

    mix_ln_post_layers: int | None = option(
        help="the first K blocks of mix_ln are Post-LN (default: a quarter)", type=int, metavar="K"
    )


class Deferred:
    """Mixin of norms [s, b, h] -> [s, b, h] that a block may apply after its residual sum instead of before the branch, or
    to what it reads of several streams."""

    after_residual: bool = False
    # In a tuple: what reads is the layer's submodule, and must not be registered a second time here.
    _reader: tuple[Any, ...] = ()

    def read_by(self, reader: Any) -> None:
        """Normalise ``reader.read(x)`` from now on."""
        self._reader = (reader,)

    def forward(self, x: Tensor) -> Tensor:
        for reader in self._reader:
            x = reader.read(x)
        return x if self.after_residual else self.normalized(x)

    def normalized(self, x: Tensor) -> Tensor:
        """The norm itself."""
        return super().forward(x)  # type: ignore[misc]


class PostNormJoin(ResidualJoin):
    """N(alpha * x + F(x)) in a Post-LN block; x + F(N(x)) in a Pre-LN one."""

    alpha: float = 1.0
    # In a tuple: the norm is the layer's submodule, and must not be registered a second time here.
    _norm: tuple[Any, ...] = ()

    def take(self, norm: Any, alpha: float) -> None:
        """Apply ``norm`` to the sum from now on."""
        norm.after_residual = True
        self._norm, self.alpha = (norm,), alpha

    def combined(self, residual: Tensor, branch: Tensor) -> Tensor:
        if not self._norm:
            return residual + branch
        return self._norm[0].normalized(branch + self.alpha * residual).to(residual.dtype)


def post_norm_overlay(
    submodules: TransformerLayerSubmodules, config: TransformerConfig, norms: Norms, _options: Any
) -> TransformerLayerSubmodules:
    """Norms that can be deferred, and joins that apply them."""
    return with_joins(norms.deferred(submodules), config, PostNormJoin)


def _apply_after(layer: Any, alpha: float = 1.0) -> None:
    layer.self_attn_bda.take(layer.input_layernorm, alpha)
    layer.mlp_bda.take(layer.pre_mlp_layernorm, alpha)


def bind_post_ln(layer: Any, _number: int, _config: TransformerConfig, _options: Any) -> None:
    """N(x + F(x)) (Vaswani et al.)."""
    _apply_after(layer)


def post_layers(config: Any, options: MixLNOptions) -> int:
    """How many blocks of Mix-LN are Post-LN: a quarter of them (arXiv 2412.13795), or what the user says."""
    return config.num_layers // 4 if options.mix_ln_post_layers is None else options.mix_ln_post_layers


def bind_mix_ln(layer: Any, number: int, config: TransformerConfig, options: MixLNOptions) -> None:
    """Post-LN in the first blocks of the whole model, Pre-LN in the others."""
    if number <= post_layers(config, options):
        _apply_after(layer)


def deepnorm_alpha(num_layers: int) -> float:
    """(2L)^(1/4), L the blocks of the whole model (arXiv 2203.00555, decoder-only)."""
    return (2 * num_layers) ** 0.25


def bind_deepnorm(layer: Any, _number: int, config: TransformerConfig, _options: Any) -> None:
    """N(alpha x + F(x))."""
    _apply_after(layer, deepnorm_alpha(config.num_layers))


def _check_mix_ln(options: MixLNOptions, num_layers: int | None) -> None:
    layers = options.mix_ln_post_layers
    if layers is not None and (layers < 0 or (num_layers is not None and layers > num_layers)):
        raise UserError(f"--mix-ln-post-layers {layers} must be between 0 and --num-layers {num_layers}")


POST_LN = Scheme(
    name="post_ln",
    block="N(x + F(x))",
    reference="Vaswani et al., arXiv 1706.03762",
    default_init="normal",
    overlay=post_norm_overlay,
    bind=bind_post_ln,
    final_norm=False,
    stock=NotFoldable("its norms are after the residual sum"),
)
MIX_LN = Scheme(
    name="mix_ln",
    block="the first K blocks post_ln, the others pre_ln",
    reference="Li et al., arXiv 2412.13795",
    default_init="normal",
    options=MixLNOptions,
    overlay=post_norm_overlay,
    bind=bind_mix_ln,
    check=_check_mix_ln,
    recorded=lambda config, options: {"mix_ln_post_layers": post_layers(config, options)},
    stock=NotFoldable("the norms of its first blocks are after the residual sum"),
)
DEEPNORM = Scheme(
    name="deepnorm",
    block="N((2L)^(1/4) x + F(x))",
    reference="Wang et al., arXiv 2203.00555, decoder-only",
    default_init="deepnorm",
    overlay=post_norm_overlay,
    bind=bind_deepnorm,
    final_norm=False,
    stock=NotFoldable("its norms are after the residual sum, which it weighs"),
)
