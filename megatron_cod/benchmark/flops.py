"""Model FLOPs of a step and what a device could do: the two halves of MFU (Chowdhery et al., arXiv 2204.02311, B)."""

import torch

from megatron_cod.args import MegatronArgs
from megatron_cod.errors import UserError


def flops_per_token(matrix_parameters: int, layers: int, seq_length: int, attention_size: int) -> float:
    """Forward and backward of one token: 6 for every weight of a matrix product, 12 * L * s * heads * d for attention.

    Attention is counted in full although it is causal, as PaLM and Megatron do; recomputation is not counted. The
    embedding is a look-up and stays out, the output layer is a product and counts.
    """
    return 6.0 * matrix_parameters + 12.0 * layers * seq_length * attention_size


def matrix_parameters(model: torch.nn.Module) -> int:
    """Weights that every token is multiplied with. Mixtures of experts are not supported: UserError."""
    total = 0
    for name, parameter in model.named_parameters():
        if "experts" in name:
            raise UserError("MFU of mixtures of experts is not counted; omit --peak-tflops")
        if parameter.dim() == 2 and "word_embeddings" not in name:
            total += parameter.numel()
    return total


def mfu(args: MegatronArgs, model: torch.nn.Module, tokens_per_s: float, peak: float) -> float:
    """Model FLOPs utilisation of one device, 0 to 1."""
    size = args.num_attention_heads * args.kv_channels
    per_token = flops_per_token(matrix_parameters(model), args.num_layers, args.seq_length, size)
    return per_token * tokens_per_s / (peak * 1e12)
