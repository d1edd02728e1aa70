"""Multi-latent attention under tensor parallelism without Transformer Engine, with the gradients of one rank.

Megatron 0.19.2's own is written for Transformer Engine's duplicated down projections; with the column-parallel ones of
the local backend its forward is right and its backward is not: the rotary part of the keys is one for all heads, and
each rank back-propagates only what its own heads ask of it.
"""

from copy import copy
from dataclasses import replace
from typing import Any

from megatron.core.tensor_parallel import (
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.mla_qk_norm_config import QKNormConfigResolver
from megatron.core.transformer.multi_latent_attention import MLASelfAttention, MLASelfAttentionSubmodules
from megatron.core.transformer.transformer_config import MLATransformerConfig
from torch import Tensor


class TorchMLASelfAttention(MLASelfAttention):
    """MLASelfAttention that passes on its compressed keys as Transformer Engine does: whole, of this rank's tokens.

    Megatron then gathers the rotary part over the sequence, an operation whose backward sums over the ranks. So it needs
    ``--sequence-parallel``; ``layer_specs`` refuses LNS without.
    """

    def _qkv_down_projection(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """hidden_states [s/tp, b, h] -> queries [s/tp, b, q_lora_rank or h], keys [s/tp, b, kv_lora_rank + rotary]."""
        queries, keys = super()._qkv_down_projection(hidden_states)
        keys = gather_from_tensor_model_parallel_region(keys)
        return queries, scatter_to_sequence_parallel_region(keys)


class _FullRankQueries:
    """Mixin: queries straight from the hidden states, keys and values through a norm (DeepSeek V2 Lite).

    Megatron's own reading of ``--qk-layernorm`` without ``--q-lora-rank`` is a norm in front of the queries, which only
    Transformer Engine has; without it the model cannot be built.
    """

    def _resolve_qk_norm_config(self, submodules: MLASelfAttentionSubmodules) -> Any:
        plain = copy(self.config)  # type: ignore[attr-defined]
        plain.qk_layernorm = False
        found = QKNormConfigResolver(plain, replace(submodules, q_layernorm=None, kv_layernorm=None)).resolve()
        return found | {"kv_layernorm": submodules.kv_layernorm}


class FullRankMLASelfAttention(_FullRankQueries, MLASelfAttention):
    """On one tensor-parallel rank."""


class FullRankTorchMLASelfAttention(_FullRankQueries, TorchMLASelfAttention):
    """On several."""


def torch_mla(config: MLATransformerConfig) -> type[MLASelfAttention]:
    """The class of latent attention for a configuration; Megatron's own where that one works."""
    split = config.tensor_model_parallel_size > 1
    if config.q_lora_rank is None and config.qk_layernorm:
        return FullRankTorchMLASelfAttention if split else FullRankMLASelfAttention
    return TorchMLASelfAttention if split else MLASelfAttention
