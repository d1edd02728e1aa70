"""How many windows evaluation computes at once where ``--micro-batch-size`` does not say: by memory, not as in training."""

from __future__ import annotations

from typing import Any

from megatron_cod.adaptations import cpu

_TOKENS = {"CPU": 2048, "GPU": 16384}
"""More at once make no product faster (docs/benchmarks.md: Evaluation)."""
_CPU_BYTES = 1 << 30
_GPU_SHARE = 1 / 8
_UNKNOWN_VOCABULARY = 1 << 18


def _bytes_a_token(raw: Any) -> float:
    """Logits in the model's precision, in fp32 and their exponentials; and what one block holds, which is given back."""
    element = 2 if raw.bf16 or raw.fp16 else 4
    vocabulary = raw.padded_vocab_size or raw.vocab_size or _UNKNOWN_VOCABULARY
    width = (raw.moe_ffn_hidden_size or 0) * (raw.moe_router_topk or 1) if raw.num_experts else 0
    block = 8 * raw.hidden_size + 3 * max(width, raw.ffn_hidden_size or 4 * raw.hidden_size)
    return ((element + 8) * vocabulary + element * block) / raw.tensor_model_parallel_size


def micro_batch_size(raw: Any, of_the_run: int) -> int:
    """Windows of ``--seq-length`` in a micro-batch, a power of two. raw: arguments before validation.

    That of the run where a token's loss depends on the rest of its batch: where experts drop tokens.
    """
    if raw.moe_expert_capacity_factor is not None:
        return of_the_run
    most, room = _TOKENS["CPU"], float(_CPU_BYTES)
    if cpu.has_cuda():
        import torch

        most, room = _TOKENS["GPU"], torch.cuda.get_device_properties(0).total_memory * _GPU_SHARE
    tokens = min(most, room / _bytes_a_token(raw))
    share = raw.seq_length / raw.context_parallel_size
    return 1 << max(0, int(tokens // share).bit_length() - 1)
