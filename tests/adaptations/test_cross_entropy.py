"""Cross entropy of the host: torch's in fp64 within fp32's rounding, in blocks of every size, and its gradient."""

import pytest
import torch
import torch.nn.functional as F

from megatron_cod.adaptations import cross_entropy as cross_entropy_module
from megatron_cod.adaptations.cross_entropy import cross_entropy, of_whole_vocabularies

S, B, V = 7, 3, 50


def inputs(dtype=torch.float32):
    torch.manual_seed(0)
    return (4 * torch.randn(S, B, V)).to(dtype), torch.randint(V, (S, B)), torch.rand(S, B)


def outcome(function, dtype=torch.float32):
    """Losses [s, b] and the gradient of the logits [s, b, v], in fp64; a masked token's gradient is 0."""
    logits, target, weights = inputs(dtype)
    weights[2] = 0.0
    logits.requires_grad_()
    loss = function(logits * 1.0, target)
    (loss * weights).sum().backward()
    return loss.detach().double(), logits.grad.double()


def of_torch(logits, target):
    return F.cross_entropy(logits.double().flatten(0, 1), target.flatten(), reduction="none").view(target.shape)


def difference(dtype=torch.float32) -> float:
    return max(
        float((a - b).abs().max()) for a, b in zip(outcome(cross_entropy, dtype), outcome(of_torch, dtype), strict=True)
    )


@pytest.mark.parametrize("rows", [1, 4, 20, 21, 1000])
def test_equals_torchs(rows, monkeypatch):
    monkeypatch.setattr(cross_entropy_module, "_BLOCK_BYTES", rows * 4 * V)
    assert difference() <= 2e-6


def test_half_precision_is_computed_in_fp32():
    assert difference(torch.bfloat16) <= 4e-3
    assert cross_entropy(inputs(torch.bfloat16)[0], inputs()[1]).dtype == torch.float32


def without_the_last_block(ctx, logits, target, right=cross_entropy_module._CrossEntropy.forward):
    loss = right(ctx, logits, target)
    return torch.cat((loss[:-1], torch.zeros_like(loss[-1:])))


def without_the_target(ctx, grad):
    values, _ = ctx.saved_tensors
    return values * grad.unsqueeze(-1), None


@pytest.mark.parametrize("name, mutant", [("forward", without_the_last_block), ("backward", without_the_target)])
def test_detects_wrong_loss_and_gradient(name, mutant, monkeypatch):
    monkeypatch.setattr(cross_entropy_module._CrossEntropy, name, staticmethod(mutant))
    assert difference() > 1e-2


def test_overwrites_a_view_as_the_models_logits_are():
    """The output layer's logits are a transposed view where no micro-batch is larger than one."""
    hidden, weight = torch.randn(S, 1, 8, requires_grad=True), torch.randn(V, 8, requires_grad=True)
    target = torch.randint(V, (S, 1))
    found = torch.autograd.grad(cross_entropy(F.linear(hidden, weight), target).sum(), (hidden, weight))
    right = torch.autograd.grad(of_torch(F.linear(hidden, weight), target).sum(), (hidden, weight))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, right, strict=True))


class Group:
    def __init__(self, size: int) -> None:
        self._size = size

    def size(self) -> int:
        return self._size


@pytest.mark.parametrize(("size", "smoothing", "ours"), [(1, 0.0, True), (2, 0.0, False), (1, 0.1, False)])
def test_split_vocabularies_and_smoothing_are_megatrons(size, smoothing, ours):
    logits, target, _ = inputs()
    found = of_whole_vocabularies(lambda *_: "Megatron's")(logits, target, smoothing, Group(size))
    assert (found == "Megatron's") != ours if isinstance(found, str) else ours
