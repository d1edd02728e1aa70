"""Core attention on torch.nn.functional.scaled_dot_product_attention: flash kernels on GPU, a fused path on CPU."""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_cod.backends.packed_samples import PackedSamples
from megatron_cod.backends.torch_context_parallel import attention_of_chunks
from megatron_cod.backends.torch_context_parallel import unsupported as unsupported_in_parallel
from megatron_cod.common.lists import refuse_set


class SDPACoreAttention(MegatronModule):
    """softmax(Q K^T * scale) V without the s x s scores in memory; replaces ``DotProductAttention``.

    Causal by default; an explicit mask (document boundaries) is honoured; packed samples are attended to one by one;
    grouped-query heads are not repeated in memory. Under context parallelism queries are this rank's, keys and values are
    gathered. Raises UserError at construction for what torch's kernel cannot do.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        unsupported = {
            "--window-size": config.window_size is not None,
            f"--softmax-type {config.softmax_type}": config.softmax_type != "vanilla",
            "--qk-clip": getattr(config, "qk_clip", False),
            **unsupported_in_parallel(config),
        }
        refuse_set(unsupported, "the torch backend's attention does not support", "use Transformer Engine")
        self.attn_mask_type = attn_mask_type
        self.softmax_scale = softmax_scale  # None: 1/sqrt(head size), torch's own default
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.context_group = getattr(pg_collection, "cp", None)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
        **_: Any,
    ) -> Tensor:
        """query [sq, b, heads, d], key and value [sk, b, groups, d] -> [sq, b, heads * d].

        attention_mask: None, or bool [b or 1, 1, sq, sk], True where attention is forbidden (Megatron's sense).
        packed_seq_params: Megatron's for the ``thd`` format; then query is [t, heads, d], key and value [t, groups, d] and
        the result [t, heads * d]. Each sample has attention of its own: there are no scores across samples to mask.
        """
        causal = (attn_mask_type or self.attn_mask_type) in (AttnMaskType.causal, AttnMaskType.padding_causal)
        if packed_seq_params is not None:
            assert attention_mask is None and attention_bias is None and self.config.context_parallel_size == 1
            return self._packed(query, key, value, packed_seq_params, causal)
        if self.config.context_parallel_size > 1:
            assert attention_bias is None
            mask = None if attention_mask is None else ~attention_mask
            return attention_of_chunks(query, key, value, mask, causal, self.softmax_scale, self.context_group)
        # Megatron's dense masks already hold the causal part, and torch refuses a mask together with is_causal.
        mask = attention_bias
        if attention_mask is not None:
            mask = ~attention_mask
            if attention_bias is not None:
                mask = attention_bias.masked_fill(attention_mask, float("-inf"))
        elif attention_bias is not None and causal:
            upper = torch.ones(query.shape[0], key.shape[0], dtype=torch.bool, device=query.device).triu(1)
            mask = attention_bias.masked_fill(upper, float("-inf"))

        return self._attend(query, key, value, mask, causal and mask is None)

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, samples: Any, causal: bool) -> Tensor:
        # Megatron's own parameters have the lengths on the device only.
        known = isinstance(samples, PackedSamples)
        lengths = samples.lengths if known else samples.cu_seqlens_q.diff().tolist()
        parts = zip(*(tensor.unsqueeze(1).split(lengths) for tensor in (query, key, value)), strict=True)
        return torch.cat([self._attend(q, k, v, None, causal) for q, k, v in parts]).squeeze(1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Shapes as in ``forward``; mask: as torch has it, True or 0 where attention is allowed."""
        dropout = self.dropout if self.training else 0.0
        # The attention region is split over TP, so its dropout must differ between TP ranks; with sequence
        # parallelism the default state already does (as in Megatron's own core attention).
        fork = dropout > 0.0 and not self.config.sequence_parallel
        with tensor_parallel.get_cuda_rng_tracker().fork() if fork else nullcontext():
            context = F.scaled_dot_product_attention(
                query.permute(1, 2, 0, 3),
                key.permute(1, 2, 0, 3),
                value.permute(1, 2, 0, 3),
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=causal,
                scale=self.softmax_scale,
                enable_gqa=query.shape[2] != key.shape[2],
            )
        return context.permute(2, 0, 1, 3).flatten(2)
