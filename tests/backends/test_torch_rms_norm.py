"""RMSNorm of the host at many tokens, whose sums run in blocks, and where it is torch's own."""

import pytest
import torch
import torch.nn.functional as F

from megatron_cod.backends import torch_rms_norm
from megatron_cod.backends.torch_rms_norm import rms_norm

EPS = 1e-6


def outcome(function, tokens, dtype, h=48):
    """The output, the gradient of x [tokens, 2, h] and that of the gain [h], in fp64."""
    torch.manual_seed(0)
    x, gain = torch.randn(tokens, 2, h), torch.rand(h) + 0.5
    direction = torch.randn(tokens, 2, h)
    x, gain = (one.to(dtype).requires_grad_() for one in (x, gain))
    out = function(x, gain, EPS)
    out.backward(direction.to(dtype))
    return [one.detach().double() for one in (out, x.grad, gain.grad)]


def of_torch(x, gain, eps):
    return F.rms_norm(x, gain.shape, gain, eps)


def errors(function, tokens, dtype=torch.float32):
    """How far from torch's in fp64, relative to the largest number of each result."""
    right = outcome(of_torch, tokens, torch.float64)
    found = outcome(function, tokens, dtype)
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, right, strict=True)]


@pytest.mark.parametrize("tokens", [1, 7, 511, 512, 544, 4096])
def test_is_as_exact_as_torchs(tokens):
    assert all(
        ours <= 2 * torchs + 3e-7
        for ours, torchs in zip(errors(rms_norm, tokens), errors(of_torch, tokens), strict=True)
    )


def test_has_right_gradients():
    torch.manual_seed(0)
    x, gain = torch.randn(3, 2, 5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, gain: rms_norm(x, gain, EPS), (x.requires_grad_(), gain.requires_grad_()))


def test_half_precision_is_torchs_to_the_bit():
    ours, torchs = outcome(rms_norm, 9, torch.bfloat16), outcome(of_torch, 9, torch.bfloat16)
    assert all(torch.equal(one, other) for one, other in zip(ours, torchs, strict=True))


def test_takes_tensors_that_are_not_contiguous():
    x = torch.randn(4, 6, 8).transpose(0, 1).requires_grad_()
    gain = torch.rand(8, requires_grad=True)
    found = torch.autograd.grad(rms_norm(x, gain, EPS).sum(), (x, gain))
    right = torch.autograd.grad(of_torch(x, gain, EPS).sum(), (x, gain))
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def first_block_dropped(values, weights, right=torch_rms_norm._sum_over_tokens):
    return right(values[64:], weights[64:])


def test_detects_a_block_that_is_dropped(monkeypatch):
    monkeypatch.setattr(torch_rms_norm, "_sum_over_tokens", first_block_dropped)
    assert errors(rms_norm, 4096)[2] > 1e-3
