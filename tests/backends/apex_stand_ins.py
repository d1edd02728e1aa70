"""NVIDIA Apex is not on the package index: its two autograd functions, as Megatron calls them, on torch."""

import torch
from torch import Tensor


class FusedLayerNormAffineFunction(torch.autograd.Function):
    """apex.normalization.fused_layer_norm: (input, weight, bias, normalized_shape, eps, memory_efficient)."""

    @staticmethod
    def forward(ctx, input, weight, bias, normalized_shape, eps, memory_efficient=False):
        ctx.save_for_backward(input, weight, bias)
        ctx.shape, ctx.eps = normalized_shape, eps
        return torch.nn.functional.layer_norm(input, normalized_shape, weight, bias, eps)

    @staticmethod
    def backward(ctx, grad):
        return (*_gradients(ctx, grad), None, None, None)


class FastLayerNormFN(torch.autograd.Function):
    """apex.contrib.layer_norm: (x, gamma, beta, epsilon, memory_efficient); its output is a view, as Apex's is."""

    @staticmethod
    def forward(ctx, x, gamma, beta, epsilon, memory_efficient=False):
        ctx.save_for_backward(x, gamma, beta)
        ctx.shape, ctx.eps = gamma.shape, epsilon
        flat = torch.nn.functional.layer_norm(x.reshape(-1, gamma.numel()), gamma.shape, gamma, beta, epsilon)
        return flat.view(x.shape)

    @staticmethod
    def backward(ctx, grad):
        return (*_gradients(ctx, grad), None, None)


def _gradients(ctx, grad: Tensor) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        out = torch.nn.functional.layer_norm(leaves[0], ctx.shape, leaves[1], leaves[2], ctx.eps)
        return torch.autograd.grad(out, leaves, grad)


def install() -> None:
    """Put them where Megatron looks for Apex's."""
    from megatron.core.fusions import fused_layer_norm

    fused_layer_norm.FastLayerNormFN = FastLayerNormFN
    fused_layer_norm.FusedLayerNormAffineFunction = FusedLayerNormAffineFunction
    fused_layer_norm.HAVE_PERSIST_LAYER_NORM = fused_layer_norm.HAVE_FUSED_LAYER_NORM = True
