"""cuDNN's attention, which the emulation does not have. Transformer Engine takes it on a GPU, and splits sequences with it.

Its calls are answered with tensors of the right shapes, and nothing is computed, as for every kernel here. The choice of
the kernel, the layouts and the exchange between ranks are Transformer Engine's own.
"""

from typing import Any

import torch
from torch import Tensor


def forward(longest: int, *arguments: Any) -> list[Tensor]:
    """transformer_engine_torch.fused_attn_fwd: the output [..., h, d], log-sum-exp [b, h, s, 1] and random state."""
    starts, q, v = arguments[13], arguments[15], arguments[17]
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    stats = torch.zeros(starts.numel() - 1, q.shape[-2], longest, 1, dtype=torch.float32, device=q.device)
    return [out, stats, torch.zeros(2, dtype=torch.int64, device=q.device)]


def backward(*arguments: Any) -> list[Tensor | None]:
    """transformer_engine_torch.fused_attn_bwd: gradients of q, k and v; none of a bias and of a softmax offset."""
    return [*(torch.zeros_like(one) for one in arguments[19:22]), None, None]


def install() -> None:
    """In a rank, before it trains."""
    import transformer_engine_torch as tex
    from transformer_engine.pytorch.attention.dot_product_attention import utils
    from transformer_engine.pytorch.cpp_extensions import fused_attn

    chosen = int(fused_attn.FusedAttnBackend["F16_arbitrary_seqlen"])
    utils._get_fused_attn_backend = lambda **_: (chosen, "")
    tex.fused_attn_fwd, tex.fused_attn_bwd = forward, backward
