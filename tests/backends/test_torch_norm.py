"""The torch norms against the formula written out, in fp32 and bf16, forward and gradients."""

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_cod.backends.torch_norm import depth_scaled_torch_norm, torch_norm
from tests.backends.norms import EPS, H, formula


def config(normalization: str, *, sequence_parallel: bool = False, zero_centered: bool = False) -> TransformerConfig:
    return TransformerConfig(
        num_layers=2,
        hidden_size=H,
        num_attention_heads=4,
        normalization=normalization,
        layernorm_zero_centered_gamma=zero_centered,
        sequence_parallel=sequence_parallel,
        tensor_model_parallel_size=2 if sequence_parallel else 1,
        persist_layer_norm=False,
    )


@pytest.mark.parametrize("kind", ["RMSNorm", "LayerNorm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("zero_centered", [False, True])
@pytest.mark.parametrize("factor", [None, 126**-0.5])
def test_norm_equals_formula(kind, dtype, zero_centered, factor):
    torch.manual_seed(0)
    build = torch_norm if factor is None else depth_scaled_torch_norm
    norm = build(config=config(kind, sequence_parallel=True, zero_centered=zero_centered), hidden_size=H, eps=EPS)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.3 * torch.randn(H))
    norm.to(dtype)
    if factor is not None:
        norm.depth_factor = factor
    x = torch.randn(7, 3, H).to(dtype).requires_grad_()
    out = norm(x)
    direction = torch.randn_like(out.float())
    (out.float() * direction).sum().backward()

    leaves = [p.detach().double().requires_grad_() for p in norm.parameters()]
    reference_x = x.detach().double().requires_grad_()
    gamma = leaves[0] + 1 if zero_centered else leaves[0]
    expected = formula(kind, reference_x, gamma, leaves[1] if len(leaves) > 1 else None, factor or 1.0)
    (expected * direction.double()).sum().backward()

    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 4e-2, "atol": 4e-2}
    torch.testing.assert_close(out.double(), expected, **tolerance)
    torch.testing.assert_close(x.grad.double(), reference_x.grad, **tolerance)
    for parameter, leaf in zip(norm.parameters(), leaves, strict=True):
        scale = leaf.grad.abs().max()
        torch.testing.assert_close(parameter.grad.double() / scale, leaf.grad / scale, **tolerance)
    assert out.dtype == dtype


@pytest.mark.parametrize("kind", ["RMSNorm", "LayerNorm"])
def test_names_and_state_are_stock(kind):
    """No buffer, no parameter, no checkpoint key beside Megatron's own."""
    stock = torch_norm(config(kind), H, EPS)
    scaled = depth_scaled_torch_norm(config(kind), H, EPS)
    scaled.depth_factor = 0.5
    assert isinstance(stock, torch.nn.RMSNorm | torch.nn.LayerNorm) and not hasattr(stock, "depth_factor")
    assert list(scaled.state_dict()) == list(stock.state_dict())
    assert not list(scaled.buffers())


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_parameters_are_marked_for_sequence_parallel_reduction(sequence_parallel):
    norm = depth_scaled_torch_norm(config("LayerNorm", sequence_parallel=sequence_parallel), H, EPS)
    assert [p.sequence_parallel for p in norm.parameters()] == [sequence_parallel] * 2


def test_factor_survives_meta_device_dtype_and_state_dict():
    """What uninitialised a buffer elsewhere: meta init, to_empty, reset, conversion, loading. Also the mutant of it."""
    with torch.device("meta"):
        norm = depth_scaled_torch_norm(config("RMSNorm"), H, EPS)
        norm.depth_factor = 0.25
        norm.register_buffer("mutant", torch.tensor(0.25))
    norm.to_empty(device="cpu")
    norm.reset_parameters()
    norm.load_state_dict({**norm.state_dict(), "weight": torch.full((H,), 2.0)})
    norm.bfloat16()
    assert norm.depth_factor == 0.25
    x = torch.randn(2, 1, H).bfloat16()
    expected = formula("RMSNorm", x, torch.full((H,), 2.0), None, 0.25)
    torch.testing.assert_close(norm(x).double(), expected, rtol=2e-2, atol=2e-2)
    with torch.device("meta"):
        lost = torch.nn.Module()
        lost.register_buffer("factor", torch.tensor(0.25))
    lost.to_empty(device="cpu").factor.fill_(7.0)  # to_empty leaves whatever is there
    assert lost.factor != 0.25


def test_rejects_other_normalizations():
    wrong = config("RMSNorm")
    wrong.normalization = "L2Norm"
    with pytest.raises(ValueError, match="RMSNorm and LayerNorm"):
        depth_scaled_torch_norm(wrong, H, EPS)
