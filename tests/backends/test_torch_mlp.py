"""SwiGLU without concatenation: the numbers of the plain formula to the bit, and what is left to Megatron's own MLP."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from megatron_cod.backends import torch_mlp
from megatron_cod.backends.torch_mlp import TorchMLP, swiglu


def formula(gate_up):
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def outcome(function, dtype=torch.float32):
    """The output [s, b, f] and the gradient of the input [s, b, 2f]."""
    torch.manual_seed(0)
    x = torch.randn(5, 3, 32).to(dtype).requires_grad_()
    out = function(x)
    torch.manual_seed(1)
    out.backward(torch.randn(out.shape).to(dtype))
    return out.detach(), x.grad


def equal(ours, theirs) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_swiglu_equals_formula_to_the_bit(dtype):
    assert equal(outcome(swiglu, dtype), outcome(formula, dtype))


def test_swiglu_has_right_gradients():
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(swiglu, torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True))


def test_swiglu_under_recomputation():
    def recomputed(x):
        return torch.utils.checkpoint.checkpoint(swiglu, x, use_reentrant=False)

    assert equal(outcome(recomputed), outcome(formula))


def swapped(ctx, grad, right=torch_mlp._SwiGLU.backward):
    return torch.cat(right(ctx, grad).chunk(2, -1)[::-1], -1)


def without_up(ctx, grad, right=torch_mlp._SwiGLU.backward):
    by_gate, by_up = right(ctx, grad).chunk(2, -1)
    return torch.cat((by_gate, torch.zeros_like(by_up)), -1)


@pytest.mark.parametrize("mutant", [swapped, without_up])
def test_detects_wrong_gradients(mutant, monkeypatch):
    monkeypatch.setattr(torch_mlp._SwiGLU, "backward", staticmethod(mutant))
    assert not equal(outcome(swiglu), outcome(formula))


PLAIN = {
    "gated_linear_unit": True,
    "activation_func": F.silu,
    "glu_linear_offset": 0.0,
    "activation_func_clamp_value": None,
    "activation_func_fp8_input_store": False,
    "use_te_activation_func": False,
    "bias_activation_fusion": False,
}


class Same(torch.nn.Module):
    def forward(self, x):
        return x, None


class Recorder(TorchMLP):
    """An MLP whose linears do nothing: whether its SwiGLU was ours is what it tells."""

    def __init__(self, **changed) -> None:
        torch.nn.Module.__init__(self)
        self.config = SimpleNamespace(**{**PLAIN, **changed})
        self.activation_func = self.config.activation_func
        self.linear_fc1 = self.linear_fc2 = Same()


@pytest.mark.parametrize(
    ("changed", "ours"),
    [
        ({}, True),
        ({"bias_activation_fusion": True}, True),  # Megatron's fusion is one on GPUs alone
        ({"activation_func_clamp_value": 7.0}, False),
        ({"glu_linear_offset": 1.0}, False),
        ({"activation_func": F.gelu}, False),
        ({"gated_linear_unit": False}, False),
    ],
)
def test_other_units_are_megatrons(changed, ours, monkeypatch):
    called = []
    monkeypatch.setattr(torch_mlp, "swiglu", lambda x: called.append(1) or formula(x))
    Recorder(**changed)(torch.randn(2, 1, 8))
    assert bool(called) == ours
