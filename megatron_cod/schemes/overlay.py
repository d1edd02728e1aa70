"""What a scheme gets to change of a layer, and with which norms."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from megatron_cod.schemes.residual import ResidualJoin

NormBuilder = Callable[..., torch.nn.Module]
"""Builds a norm, from (config, hidden_size, eps)."""


@dataclass(frozen=True)
class Norms:
    """What a backend does for a scheme's norms: it knows where in its layers they are, fused with a linear or not."""

    plain: NormBuilder
    depth_scaled: Callable[[TransformerLayerSubmodules, Collection[str]], TransformerLayerSubmodules]
    """The same layer with a depth factor on the input norms of some branches, of "attention" and "mlp" (see
    ``schemes.depth.DepthScaled``). UserError where it finds no norm."""
    deferred: Callable[[TransformerLayerSubmodules], TransformerLayerSubmodules]
    """The same layer with separate input norms that can do nothing where Megatron calls them (see
    ``schemes.post_norm``)."""


Overlay = Callable[[TransformerLayerSubmodules, TransformerConfig, Norms, Any], TransformerLayerSubmodules]
"""The submodules of a layer as Megatron builds them, and the scheme's options -> the same under the scheme."""

Bind = Callable[[Any, int, TransformerConfig, Any], None]
"""Called with a built layer, its global 1-based number l, the configuration and the scheme's options: what depends on the
depth is set here."""


def with_joins(
    submodules: TransformerLayerSubmodules, config: TransformerConfig, join: type[ResidualJoin], **params: Any
) -> TransformerLayerSubmodules:
    """The same layer with ``join`` for both of its branches."""
    attention, mlp = (ModuleSpec(module=join, params={"config": config, **params}) for _ in range(2))
    return replace(submodules, self_attn_bda=attention, mlp_bda=mlp)


def depth_scaled_norms(
    submodules: TransformerLayerSubmodules, _config: TransformerConfig, norms: Norms, _options: Any
) -> TransformerLayerSubmodules:
    """The overlay of a scheme whose factor multiplies both input norms."""
    return norms.depth_scaled(submodules, ("attention", "mlp"))
