"""Megatron's self-attention on the torch backend: its own code, but for the rotary position embedding."""

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.identity_op import IdentityOp
from torch import Tensor

from megatron_cod.backends.host_blocks import has_several_blocks
from megatron_cod.backends.packed_samples import PackedSamples
from megatron_cod.backends.torch_attention import SDPACoreAttention
from megatron_cod.backends.torch_linear import are_plain_products
from megatron_cod.backends.torch_mixed_rotary import project_rotated, rotate_mixed
from megatron_cod.backends.torch_rotary import Rotation, rotate, tables


@dataclass(frozen=True)
class _Angles:
    """What replaces Megatron's angles on their way through its attention, so that its own rotary is passed over."""

    of_query: Tensor
    of_key: Tensor
    samples: PackedSamples | None


def _plain(angles: Any) -> bool:
    return isinstance(angles, Tensor) and angles.dim() == 4 and not angles.requires_grad


ABSENT = (
    *("key_value_states", "inference_context", "inference_params", "rotary_pos_cos", "rotary_pos_sin"),
    *("rotary_pos_cos_sin", "attention_bias", "packed_seq_params", "sequence_len_offset"),
)
"""Arguments that the short forward does not take."""


class TorchSelfAttention(SelfAttention):
    """SelfAttention whose queries and keys are turned by ``torch_rotary``; on the host with a forward of its own.

    Where Megatron does more than turn them, its own rotary is left to it: with inference contexts (offsets into a cache of
    keys), Transformer Engine's fused kernels, packed samples that are not ``PackedSamples`` (padded, or context parallel).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_plain = self._does_nothing_else()
        self._has_mixed_rows = self._is_plain and self._is_one_row_a_head()

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **given: Any) -> Any:
        """As Megatron's, whose layers give all but the first arguments by name: [s, b, h] -> ([s, b, h], bias or None)."""
        given["rotary_pos_emb"] = angles = self._own_angles(given)
        own = angles[0] if isinstance(angles, tuple) else None
        others = any(given.get(name) is not None for name in ABSENT)
        if not self._is_plain or others or not isinstance(own, _Angles) or own.of_query.is_cuda:
            return super().forward(hidden_states, attention_mask, **given)
        query, key, value = self._query_key_value(hidden_states, own)
        attended = self.core_attention(query, key, value, attention_mask, attn_mask_type=self.attn_mask_type)
        return self.linear_proj(attended)

    def _does_nothing_else(self) -> bool:
        """Whether Megatron's forward is product, rotary, attention and product: asked once, not in every call."""
        config = self.config
        kept_or_sent = self.checkpoint_core_attention, self.offload_qkv_linear, self.offload_core_attention
        unturned = config.no_rope_freq and config.no_rope_freq[self.layer_number - 1]
        more = (*kept_or_sent, self.offload_attn_proj, config.attention_output_gate, config.flash_decode, unturned)
        return isinstance(self.core_attention, SDPACoreAttention) and not any(more)

    def _is_one_row_a_head(self) -> bool:
        """Whether a head's query, key and value are one row of the product that needs nothing but turning."""
        norms = [norm for norm in (self.q_layernorm, self.k_layernorm) if norm is not None]
        one_each = self.num_attention_heads_per_partition == self.num_query_groups_per_partition
        plain = one_each and self.config.num_query_groups >= self.world_size and not self.config.test_mode
        return plain and all(isinstance(one, IdentityOp) for one in norms)

    def _query_key_value(self, hidden_states: Tensor, own: _Angles) -> tuple[Tensor, Tensor, Tensor]:
        """[s, b, h] -> query [s, b, heads, d], key and value [s, b, groups, d], turned."""
        same = own.of_key is own.of_query
        if self._has_mixed_rows and same and own.of_query.shape[1] == 1 and not torch.compiler.is_compiling():
            linear, heads = self.linear_qkv, self.num_attention_heads_per_partition
            rotation = self._rotation(own.of_query, hidden_states, None)
            if has_several_blocks(hidden_states) and are_plain_products(hidden_states, linear):
                return project_rotated(hidden_states, linear.weight, rotation, heads)
            return rotate_mixed(linear(hidden_states)[0], rotation, heads)
        query, key, value = self.get_query_key_value_tensors(hidden_states)
        return *self._turn(query, key, own), value

    def _turn(self, query: Tensor, key: Tensor, own: _Angles) -> tuple[Tensor, Tensor]:
        of_query = self._rotation(own.of_query, query, own.samples)
        of_key = of_query if own.of_key is own.of_query else self._rotation(own.of_key, key, own.samples)
        return rotate(query, key, of_query, of_key)

    def _own_angles(self, given: dict[str, Any]) -> Any:
        angles, samples = given.get("rotary_pos_emb"), given.get("packed_seq_params")
        inference = given.get("inference_context") is not None or given.get("inference_params") is not None
        if inference or self.config.apply_rope_fusion or self.config.fused_single_qkv_rope:
            return angles
        if samples is not None and not isinstance(samples, PackedSamples):
            return angles
        of_query, of_key = angles if isinstance(angles, tuple) else (angles, angles)
        if not (_plain(of_query) and _plain(of_key)):
            return angles
        own = _Angles(of_query, of_key, samples)
        return own, own  # Megatron takes a tuple as it is

    def _adjust_key_value_for_inference(
        self, context: Any, query: Tensor, key: Tensor, value: Tensor, rotary_pos_emb: Any, *rest: Any, **named: Any
    ) -> Any:
        """The last thing that Megatron does before its rotary; query [s, b, heads, d], key [s, b, groups, d]."""
        if rotary_pos_emb is not None and isinstance(rotary_pos_emb[0], _Angles):
            query, key = self._turn(query, key, rotary_pos_emb[0])
            rotary_pos_emb = None
        return super()._adjust_key_value_for_inference(context, query, key, value, rotary_pos_emb, *rest, **named)

    def _rotation(self, angles: Tensor, turned: Tensor, samples: PackedSamples | None) -> Rotation:
        found = tables.get(angles, turned.dtype, self.config.rotary_interleaved, self._yarn_concentration_factor)
        return found if samples is None else samples.once(found, lambda: found.at(samples.positions))
