"""CompleteP, or depth-muP: x + m_L^-a F(N(x)), with rates, decay, eps and initialisation for depth and width.

Dey et al., arXiv 2505.01618, table 1. m_L = L / L_base, m_N = hidden size / its base; rates found at the base transfer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from megatron.core.utils import init_method_normal, scaled_init_method_normal

from megatron_cod.errors import UserError
from megatron_cod.schemes.branch_scale import ScaledBranchJoin
from megatron_cod.schemes.options import option
from megatron_cod.schemes.overlay import Norms, with_joins
from megatron_cod.schemes.parameter_groups import GroupRules, Multipliers
from megatron_cod.schemes.row import OUTPUT_SITES, Foldable, Scheme


@dataclass(frozen=True)
class CompletePOptions:
    """The power of depth, and the model whose numbers the run's are."""

    complete_p_alpha: float = option(
        1.0,
        help="branches of complete_p count (L / base layers) ** -A, A from 0.5 to 1 (default: 1)",
        type=float,
        metavar="A",
    )
    complete_p_base_layers: int = option(
        2, help="layers of the model that --lr and its like were found for (default: 2)", type=int, metavar="L"
    )
    complete_p_base_hidden_size: int = option(
        256, help="its hidden size, with heads of the same size (default: 256)", type=int, metavar="H"
    )

    def depth(self, config: Any) -> float:
        """m_L."""
        layers: int = config.num_layers
        return layers / self.complete_p_base_layers

    def width(self, config: Any) -> float:
        """m_N."""
        hidden: int = config.hidden_size
        return hidden / self.complete_p_base_hidden_size


def branch_factor(_layer_number: int, config: Any, options: CompletePOptions) -> float:
    """m_L^-a, the same in all blocks."""
    return options.depth(config) ** -options.complete_p_alpha


def group_rules(config: Any, options: CompletePOptions) -> GroupRules:
    """Table 1 of the paper. config: anything with ``num_layers`` and ``hidden_size``."""
    width, alpha = options.width(config), options.complete_p_alpha
    depth_rate, block_eps = options.depth(config) ** (alpha - 1), options.depth(config) ** -alpha / width
    return GroupRules(
        outside=Multipliers(eps=1 / width),
        matrices=Multipliers(lr=depth_rate / width, weight_decay=width, eps=block_eps),
        vectors=Multipliers(lr=depth_rate, eps=block_eps),
    )


def configure(config: TransformerConfig, options: CompletePOptions) -> None:
    """std m_N^-1/2 in the blocks; logits times m_N^-1, by Megatron's muP, whose rates and decay are not the paper's."""
    if config.use_mup:
        raise UserError(
            "--use-mup has other rules than --norm-scheme complete_p, which scales with the width too; omit it"
        )
    width = options.width(config)
    config.init_method_std = config.init_method_std / math.sqrt(width)
    config.init_method = init_method_normal(config.init_method_std)
    config.output_layer_init_method = scaled_init_method_normal(config.init_method_std, config.num_layers)
    config.use_mup = True
    config.mup_output_mult = 1 / width


def complete_p_overlay(
    submodules: TransformerLayerSubmodules, config: TransformerConfig, _norms: Norms, _options: Any
) -> TransformerLayerSubmodules:
    """Joins that multiply the branch."""
    return with_joins(submodules, config, ScaledBranchJoin)


def _check(options: CompletePOptions, _layers: int | None) -> None:
    if not 0.5 <= options.complete_p_alpha <= 1:
        raise UserError(f"--complete-p-alpha {options.complete_p_alpha} must be at least 0.5 and at most 1")
    for name in ("complete_p_base_layers", "complete_p_base_hidden_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")


def _unsupported(config: TransformerConfig, _backend: str, _options: Any) -> list[str]:
    return ["--mtp-num-layers (the paper has no rules for them)"] if config.mtp_num_layers else []


COMPLETE_P = Scheme(
    name="complete_p",
    block="x + (L / L_base)^-a F(N(x)), with rates and initialisation for depth and width",
    reference="Dey et al., arXiv 2505.01618",
    default_init="normal",
    options=CompletePOptions,
    overlay=complete_p_overlay,
    factor=branch_factor,
    configure=configure,
    groups=group_rules,
    check=_check,
    unsupported=_unsupported,
    stock=Foldable(sites=lambda _options: OUTPUT_SITES, imported=False),
)
