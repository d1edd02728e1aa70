"""Rotary of a row of queries, keys and values: the numbers of the rotary that takes them apart, to the bit."""

import pytest
import torch

from megatron_cod.backends import torch_mixed_rotary
from megatron_cod.backends.torch_mixed_rotary import project_rotated, rotate_mixed
from megatron_cod.backends.torch_rotary import make_rotation, rotate
from tests.backends.rotary import HEADS, B, D, S, angles

ARRANGEMENTS = {
    "halves": {},
    "interleaved": {"interleaved": True},
    "a part of the head": {"width": 8},
    "a part, interleaved": {"width": 12, "interleaved": True},
    "the second chunk of two": {"offset": S},
}


def mixed(dtype=torch.float32):
    torch.manual_seed(3)
    return torch.randn(S, B, HEADS * 3 * D).to(dtype).requires_grad_()


def apart(x, rotation, heads):
    query, key, value = x.view(S, B, heads, 3 * D).split(D, -1)
    return *rotate(query, key, rotation, rotation), value


def outcome(function, rotation, dtype):
    """query, key, value [s, b, heads, d] and the gradient of the row."""
    x = mixed(dtype)
    parts = function(x, rotation, HEADS)
    torch.manual_seed(4)
    sum((part * torch.randn(part.shape).to(dtype)).sum() for part in parts).backward()
    return [*(part.detach() for part in parts), x.grad]


def equal(ours, theirs) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
def test_equals_rotary_of_parts_to_the_bit(arrangement, dtype):
    rotation = make_rotation(angles(**arrangement), dtype, arrangement.get("interleaved", False))
    assert equal(outcome(rotate_mixed, rotation, dtype), outcome(apart, rotation, dtype))


def test_parts_lie_sequence_by_sequence():
    """As torch's attention reads them fastest: the tokens of a sequence follow each other."""
    for part in rotate_mixed(mixed(), make_rotation(angles(), torch.float32, False), HEADS):
        assert part.stride() == (HEADS * 3 * D, S * HEADS * 3 * D, 3 * D, 1)


def without_the_sine_of_the_backward(rotation, size, right=torch_mixed_rotary._both_ways):
    return (right(rotation, size)[0],) * 2


def with_values_turned(rotation, size, right=torch_mixed_rotary._both_ways):
    forth, back = right(rotation, size)
    forth.cos[..., 2 * size :] = forth.cos[..., :size]
    return forth, back


@pytest.mark.parametrize("mutant", [without_the_sine_of_the_backward, with_values_turned])
def test_detects_wrong_tables(mutant, monkeypatch):
    rotation = make_rotation(angles(), torch.float32, False)
    monkeypatch.setattr(torch_mixed_rotary, "_both_ways", mutant)
    assert not equal(outcome(rotate_mixed, rotation, torch.float32), outcome(apart, rotation, torch.float32))


def product_and_rotary(x, weight, rotation, heads):
    return rotate_mixed(torch.nn.functional.linear(x, weight), rotation, heads)


def outcome_of_product(function):
    """query, key, value and the gradients of x [s, b, h] and of the weight, in fp64."""
    torch.manual_seed(5)
    x, weight = torch.randn(S, B, 6, dtype=torch.float64), torch.randn(HEADS * 3 * D, 6, dtype=torch.float64)
    x.requires_grad_()
    weight.requires_grad_()
    parts = function(x, weight, make_rotation(angles(), torch.float64, False), HEADS)
    sum((part * torch.randn(part.shape, dtype=part.dtype)).sum() for part in parts).backward()
    with torch.no_grad():
        again = function(x, weight, make_rotation(angles(), torch.float64, False), HEADS)
    return [*(part.detach() for part in parts), x.grad, weight.grad, *again]


def close(ours, theirs) -> bool:
    return all(torch.allclose(one, other, rtol=1e-12, atol=1e-12) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("at_once", [1, 2 * B, 3 * B, S * B])
def test_product_by_blocks_equals_product_and_rotary(at_once, monkeypatch):
    monkeypatch.setattr(torch_mixed_rotary, "tokens_at_once", lambda hidden: at_once)
    assert close(outcome_of_product(project_rotated), outcome_of_product(product_and_rotary))


def test_detects_tables_of_other_positions(monkeypatch):
    monkeypatch.setattr(torch_mixed_rotary, "tokens_at_once", lambda hidden: B)
    right = torch_mixed_rotary._Rows.at
    monkeypatch.setattr(
        torch_mixed_rotary._Rows, "at", lambda rows, some: right(rows, slice(0, some.stop - some.start))
    )
    assert not close(outcome_of_product(project_rotated), outcome_of_product(product_and_rotary))


def test_detects_a_dropped_block(monkeypatch):
    monkeypatch.setattr(torch_mixed_rotary, "tokens_at_once", lambda hidden: B)
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    right = torch_mixed_rotary.blocks
    monkeypatch.setattr(torch_mixed_rotary, "blocks", lambda count, size: list(right(count, size))[1:])
    assert not close(outcome_of_product(project_rotated), outcome_of_product(product_and_rotary))
