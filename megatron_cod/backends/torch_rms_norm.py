"""RMSNorm on the host: torch's own is a chain of operators there, whose backward takes four times as long as this one.

y = gain * x * r with r = (mean(x^2) + eps)^-1/2 [..., 1]. With g the gradient of y and c = sum(g * gain * x):
dx = r * gain * g - x * r^3 * c / h, and dgain is the sum of g * x * r over all tokens. Both sums are products of the one
temporary g * x with a vector. On GPUs torch has a kernel of its own for both directions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 64
_MANY = 1024
"""Tokens are summed in blocks from here: one running sum over thousands in fp32 loses digits that torch's sum keeps."""


def _sum_over_tokens(values: Tensor, weights: Tensor) -> Tensor:
    """sum_t weights[t] * values[t]; values [t, h] are overwritten, weights [t, 1] -> [h]."""
    tokens, size = values.shape
    if tokens < _MANY or tokens % _BLOCK:
        return values.mul_(weights).sum(0)
    return torch.bmm(weights.view(-1, 1, _BLOCK), values.view(-1, _BLOCK, size)).sum(0)[0]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain, r)
        return (x * r).mul_(gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gain, r = ctx.saved_tensors
        product = grad * x
        rows = product.reshape(-1, gain.shape[0])
        per_token = torch.mv(rows, gain).view_as(r).mul_(r.pow(3)).div_(-gain.shape[0])
        by_gain = _sum_over_tokens(rows, r.view(-1, 1))
        return torch.mul(grad, gain, out=product).mul_(r).addcmul_(x, per_token), by_gain, None


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """gain * x / rms(x) over the last dimension; x [..., h], gain [h], of one dtype."""
    # In half precision torch's chain computes in fp32 inside; a compiler makes one kernel of the chain.
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or torch.compiler.is_compiling():
        return F.rms_norm(x, (x.shape[-1],), gain, eps)
    return _RMSNorm.apply(x, gain, eps)
