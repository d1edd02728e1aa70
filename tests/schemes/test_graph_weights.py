"""The weights of a residual warm-up on the device, as captured layers read them, are those of the eager run to the bit."""

from types import SimpleNamespace

import pytest
import torch

from megatron_cod.schemes.residual import GraphWeights, ResidualJoin, set_training_step


def warming(lengths: list[float]) -> list[ResidualJoin]:
    joins = []
    for steps in lengths:
        joins.append(ResidualJoin(SimpleNamespace()))
        joins[-1].warmup_steps = steps
    return joins


def test_the_same_weights_at_every_step():
    lengths = [float(layer * 7) for layer in range(1, 25)]
    eager, graphed = warming(lengths), warming(lengths)
    weights = GraphWeights(graphed, torch.device("cpu"))
    for step in range(7 * 24 + 2):
        set_training_step(eager, step)
        weights.set_training_step(step)
        expected = torch.tensor([join.branch_weight for join in eager])
        assert torch.equal(torch.cat([join.branch_weight for join in graphed]), expected), step


def test_a_replay_reads_the_same_memory():
    joins = warming([10.0, 20.0])
    weights = GraphWeights(joins, torch.device("cpu"))
    places = [join.branch_weight.data_ptr() for join in joins]
    for step in (0, 3, 1000):
        weights.set_training_step(step)
        assert [join.branch_weight.data_ptr() for join in joins] == places


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_product_and_gradient(dtype):
    """1/3 is no bf16 number: the weight must not be rounded to the branch's type first."""
    eager, graphed = warming([3.0]), warming([3.0])
    set_training_step(eager, 1)
    GraphWeights(graphed, torch.device("cpu")).set_training_step(1)
    found = []
    for join in (*eager, *graphed):
        branch = torch.randn(64, 32, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        product = join.weighed(branch)
        product.backward(torch.randn(64, 32, generator=torch.Generator().manual_seed(2)).to(dtype))
        found.append((product.detach(), branch.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][0].dtype == dtype
