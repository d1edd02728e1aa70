"""Sandwich-LN, also called Peri-LN: x + N'(F(N(x))) (Ding et al.; Kim et al., arXiv 2502.02732)."""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor

from megatron_cod.schemes.overlay import Norms, with_joins
from megatron_cod.schemes.residual import ResidualJoin
from megatron_cod.schemes.row import Foldable, Scheme


class SandwichJoin(ResidualJoin):
    """x + N'(F): a norm of its own on the branch's output, key ``self_attn_bda.norm`` or ``mlp_bda.norm``."""

    def __init__(self, config: TransformerConfig, norm: Callable[..., torch.nn.Module]) -> None:
        super().__init__(config)
        self.norm = norm(config, config.hidden_size, config.layernorm_epsilon)

    def scaled(self, branch: Tensor) -> Tensor:
        return self.norm(branch)


def sandwich_overlay(
    submodules: TransformerLayerSubmodules, config: TransformerConfig, norms: Norms, _options: Any
) -> TransformerLayerSubmodules:
    """A norm behind each branch."""
    return with_joins(submodules, config, SandwichJoin, norm=norms.plain)


SANDWICH_LN = Scheme(
    name="sandwich_ln",
    block="x + N'(F(N(x)))",
    reference="Ding et al., arXiv 2105.13290; Peri-LN: Kim et al., arXiv 2502.02732",
    default_init="normal",
    overlay=sandwich_overlay,
    layer_parameters=lambda _hidden, norm, _options: 2 * norm,
    stock=Foldable(branch_norms=lambda _options: True),
)
