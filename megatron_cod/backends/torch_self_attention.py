"""Megatron's self-attention on the torch backend: its own code, but for the rotary position embedding."""

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.identity_op import IdentityOp
from torch import Tensor

from megatron_cod.backends.packed_samples import PackedSamples
from megatron_cod.backends.torch_attention import SDPACoreAttention
from megatron_cod.backends.torch_mixed_rotary import rotate_mixed
from megatron_cod.backends.torch_rotary import Rotation, rotate, tables


@dataclass(frozen=True)
class _Angles:
    """What replaces Megatron's angles on their way through its attention, so that its own rotary is passed over."""

    of_query: Tensor
    of_key: Tensor
    samples: PackedSamples | None


def _plain(angles: Any) -> bool:
    return isinstance(angles, Tensor) and angles.dim() == 4 and not angles.requires_grad


class TorchSelfAttention(SelfAttention):
    """SelfAttention whose queries and keys are turned by ``torch_rotary``.

    Where Megatron does more than turn them, its own rotary is left to it: with inference contexts (offsets into a cache of
    keys), Transformer Engine's fused kernels, packed samples that are not ``PackedSamples`` (padded, or context parallel).
    """

    _mixed_angles: Tensor | None = None
    """While a forward runs: the angles by which queries and keys are turned before they are taken apart."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As Megatron's; its layers give all but the first arguments by name."""
        kwargs["rotary_pos_emb"] = angles = self._own_angles(kwargs)
        self._mixed_angles = self._angles_of_mixed(angles)
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._mixed_angles = None

    def _angles_of_mixed(self, angles: Any) -> Tensor | None:
        """The angles, if this is the host and a head's query, key and value are one row that needs nothing but turning."""
        own, config = angles[0] if isinstance(angles, tuple) else None, self.config
        if (
            not isinstance(own, _Angles)
            or own.samples is not None
            or own.of_query.is_cuda
            or torch.compiler.is_compiling()
        ):
            return None
        if not isinstance(self.core_attention, SDPACoreAttention):
            return None  # Megatron's takes contiguous queries and keys only
        norms = [norm for norm in (self.q_layernorm, self.k_layernorm) if norm is not None]
        one_each = self.num_attention_heads_per_partition == self.num_query_groups_per_partition
        plain = one_each and config.num_query_groups >= self.world_size and not config.attention_output_gate
        without_positions = config.no_rope_freq and config.no_rope_freq[self.layer_number - 1]
        if not plain or without_positions or config.test_mode or any(not isinstance(one, IdentityOp) for one in norms):
            return None
        return own.of_query if own.of_key is own.of_query and own.of_query.shape[1] == 1 else None

    def get_query_key_value_tensors(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """hidden_states [s, b, h] -> query, key and value, [s, b, heads, d] each."""
        if self._mixed_angles is None:
            return super().get_query_key_value_tensors(hidden_states, *args, **kwargs)
        mixed, _ = self.linear_qkv(hidden_states)
        heads = self.num_attention_heads_per_partition
        return rotate_mixed(mixed, self._rotation(self._mixed_angles, mixed, None), heads)

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
            own, rotary_pos_emb = rotary_pos_emb[0], None
            if self._mixed_angles is None:
                of_query = self._rotation(own.of_query, query, own.samples)
                of_key = of_query if own.of_key is own.of_query else self._rotation(own.of_key, key, own.samples)
                query, key = rotate(query, key, of_query, of_key)
        return super()._adjust_key_value_for_inference(context, query, key, value, rotary_pos_emb, *rest, **named)

    def _rotation(self, angles: Tensor, turned: Tensor, samples: PackedSamples | None) -> Rotation:
        found = tables.get(angles, turned.dtype, self.config.rotary_interleaved, self._yarn_concentration_factor)
        return found if samples is None else samples.once(found, lambda: found.at(samples.positions))
