"""A router of experts that reads the norm before the depth factor: LNS otherwise makes its logits smaller with depth.

The experts, the shared one and its gate read the norm's output as it is.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor


class UnscaledRouter(TopKRouter):
    """Megatron's router, of its input over the factor in it."""

    factor_in_input: float = 1.0

    def take_off(self, factor: float) -> None:
        """Divide by ``factor`` from now on."""
        self.factor_in_input = factor

    def gating(self, input: Tensor) -> Tensor:
        return super().gating(input / self.factor_in_input)


def with_unscaled_router(submodules: TransformerLayerSubmodules) -> TransformerLayerSubmodules:
    """The same layer with that router, where its MLP is a mixture of experts."""
    mlp: Any = submodules.mlp
    inner = mlp.keywords.get("submodules") if isinstance(mlp, partial) else None
    if not isinstance(inner, MoESubmodules):
        return submodules
    return replace(submodules, mlp=partial(mlp, submodules=replace(inner, router=UnscaledRouter)))


def bind_router(layer: Any, factor: float) -> None:
    """Tell the router of a built layer, if it has one, the factor of the norm before it."""
    if isinstance(layer.mlp, MoELayer):
        layer.mlp.router.take_off(factor)
