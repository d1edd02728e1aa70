"""The gated MLP of the host: the plain formula, at once and by blocks of tokens, and which linears it stands for."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from megatron_cod.backends import host_blocks, torch_gated_mlp, torch_linear
from megatron_cod.backends.torch_gated_mlp import gated_mlp
from megatron_cod.backends.torch_linear import TorchColumnParallelLinear, are_plain_products

H, WIDTH, BLOCK = 12, 20, 8
TOKENS = {"none": 0, "one block": 8, "two blocks": 16, "two blocks and a rest": 19}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for module in (host_blocks, torch_gated_mlp):
        monkeypatch.setattr(module, "tokens_at_once", lambda hidden: BLOCK)


def formula(x, gate_up, down):
    gate, up = F.linear(x, gate_up).chunk(2, -1)
    return F.linear(F.silu(gate) * up, down)


def inputs(tokens, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = (tokens, 1, H), (2 * WIDTH, H), (H, WIDTH)
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def outcome(function, tokens):
    """The output and the gradients of x and of both weights."""
    given = inputs(tokens)
    out = function(*given)
    torch.manual_seed(1)
    out.backward(torch.randn(out.shape, dtype=out.dtype))
    return [out.detach(), *(one.grad for one in given)]


def close(ours, theirs) -> bool:
    return all(torch.allclose(one, other, rtol=1e-12, atol=1e-12) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
def test_equals_formula(tokens):
    assert close(outcome(gated_mlp, tokens), outcome(formula, tokens))


@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
def test_is_the_same_without_gradients(tokens):
    given = inputs(tokens)
    with torch.no_grad():
        assert torch.allclose(gated_mlp(*given), formula(*given), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("tokens", [8, 19])
def test_output_is_that_of_the_formula_to_the_bit(tokens, recorded):
    """Sums of whole numbers are exact in every order, so what is left to differ is the SwiGLU."""
    torch.manual_seed(0)
    x, gate_up = torch.randint(-3, 4, (tokens, 1, 16)) / 1.0, torch.randint(-2, 3, (32, 16)) / 1.0
    with torch.set_grad_enabled(recorded):
        given = x.requires_grad_(), gate_up, torch.eye(16)
        assert torch.equal(gated_mlp(*given), formula(*given))


@pytest.mark.parametrize("tokens", [3, 19])
def test_has_right_gradients(tokens):
    assert torch.autograd.gradcheck(gated_mlp, inputs(tokens))


def test_under_recomputation():
    def recomputed(*given):
        return torch.utils.checkpoint.checkpoint(gated_mlp, *given, use_reentrant=False)

    assert close(outcome(recomputed, 19), outcome(formula, 19))


FUNCTIONS = {8: torch_gated_mlp._AtOnce, 19: torch_gated_mlp._ByBlocks}


def swapped(by_x, by_gate_up, by_down):
    return by_x, torch.cat(by_gate_up.chunk(2)[::-1]), by_down


def without_up(by_x, by_gate_up, by_down):
    gate, up = by_gate_up.chunk(2)
    return by_x, torch.cat((gate, torch.zeros_like(up))), by_down


def without_down(by_x, by_gate_up, by_down):
    return by_x, by_gate_up, torch.zeros_like(by_down)


@pytest.mark.parametrize("tokens", FUNCTIONS)
@pytest.mark.parametrize("mutant", [swapped, without_up, without_down])
def test_detects_wrong_gradients(mutant, tokens, monkeypatch):
    right = FUNCTIONS[tokens].backward
    monkeypatch.setattr(FUNCTIONS[tokens], "backward", staticmethod(lambda ctx, grad: mutant(*right(ctx, grad))))
    assert not close(outcome(gated_mlp, tokens), outcome(formula, tokens))


def without_the_rest(count, size, right=host_blocks.blocks):
    return (rows for rows in right(count, size) if rows.stop - rows.start == size)


def test_detects_a_dropped_block(monkeypatch):
    monkeypatch.setattr(torch_gated_mlp, "blocks", without_the_rest)
    monkeypatch.setattr(
        torch.Tensor, "new_empty", torch.Tensor.new_zeros
    )  # a dropped block is zero, not what was there
    assert not close(outcome(gated_mlp, 19), outcome(formula, 19))


def linear(**changed):
    """A built linear without tensor parallelism, in which only what is asked for is set."""
    one = TorchColumnParallelLinear.__new__(TorchColumnParallelLinear)
    torch.nn.Module.__init__(one)
    one.weight = torch.nn.Parameter(torch.zeros(2, H))
    config = SimpleNamespace(defer_embedding_wgrad_compute=False, _cpu_offloading_context=None)
    plain = {"bias": None, "tp_group": SimpleNamespace(size=lambda: 1), "gtp_remat_size": 1, "config": config}
    one.__dict__ |= {**plain, "gradient_accumulation_fusion": False, "explicit_expert_comm": False, **changed}
    return one


def hooked(name):
    one = linear()
    getattr(one, name)(lambda *_: None)
    return one


class Wrapped(torch.nn.Module):
    """A linear that somebody has put in the place of ours."""


OTHERS = {
    "a bias": lambda: linear(bias=torch.zeros(2)),
    "two ranks": lambda: linear(tp_group=SimpleNamespace(size=lambda: 2)),
    "a fused gradient": lambda: linear(gradient_accumulation_fusion=True),
    "a forward hook": lambda: hooked("register_forward_hook"),
    "a pre-hook, as of --overlap-param-gather": lambda: hooked("register_forward_pre_hook"),
    "a backward hook": lambda: hooked("register_full_backward_hook"),
    "a backward pre-hook": lambda: hooked("register_full_backward_pre_hook"),
    "another class": Wrapped,
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_other_linears_are_called(other):
    x = torch.zeros(3, 1, H)
    assert are_plain_products(x, linear())
    assert not are_plain_products(x, linear(), other())


def test_other_tensors_are_left_to_torch():
    assert not are_plain_products(torch.zeros(3, 1, H, dtype=torch.bfloat16), linear())
    assert not are_plain_products(torch.zeros(3, 1, H, device="meta"), linear())


def test_every_kind_of_hook_counts():
    """torch keeps the hooks of a module in these attributes; a new kind is to be looked at."""
    kept = {name for name, value in torch.nn.Module().__dict__.items() if "hooks" in name}
    of_states = {name for name in kept if "state_dict" in name or "_with_kwargs" in name or "always_called" in name}
    assert kept - of_states - {"_is_full_backward_hook"} == set(torch_linear._HOOKS)
