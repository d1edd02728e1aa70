"""Megatron's self-attention on the torch backend: its own code, but for the rotary position embedding."""

from dataclasses import dataclass
from typing import Any

from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from megatron_cod.backends.packed_samples import PackedSamples
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

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As Megatron's; its layers give all but the first arguments by name."""
        kwargs["rotary_pos_emb"] = self._own_angles(kwargs)
        return super().forward(*args, **kwargs)

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
            of_query = self._rotation(own.of_query, query, own.samples)
            of_key = of_query if own.of_key is own.of_query else self._rotation(own.of_key, key, own.samples)
            query, key = rotate(query, key, of_query, of_key)
        return super()._adjust_key_value_for_inference(context, query, key, value, rotary_pos_emb, *rest, **named)

    def _rotation(self, angles: Tensor, turned: Tensor, samples: PackedSamples | None) -> Rotation:
        found = tables.get(angles, turned.dtype, self.config.rotary_interleaved, self._yarn_concentration_factor)
        return found if samples is None else samples.once(found, lambda: found.at(samples.positions))
