"""Evaluation sets: how much of a set an evaluation reads, and that each reads the same."""

from types import SimpleNamespace

import pytest
import torch

from megatron_cod.training.validation.fixed_set import Extent, FixedSet, extent_of


class Samples:
    """Ten samples, each with its own number as its tokens."""

    index_split = "valid"

    def __getitem__(self, index):
        assert 0 <= index < 10
        return {"tokens": torch.tensor([index]), "loss_mask": torch.ones(1)}


@pytest.mark.parametrize(
    ("epoch", "eval_iters", "whole", "expected"),
    [
        (10, 2, False, Extent(10, 8, 2)),  # a part
        (10, 3, False, Extent(10, 10, 3)),  # the asked batches cover it: all of it, once
        (10, 100, False, Extent(10, 10, 3)),
        (10, 1, True, Extent(10, 10, 3)),  # --full-validation
        (8, 2, False, Extent(8, 8, 2)),
        (0, 5, False, Extent(0, 0, 0)),
    ],
)
def test_evaluation_has_its_extent(epoch, eval_iters, whole, expected):
    assert extent_of(epoch, 4, eval_iters, whole) == expected


def test_every_evaluation_has_the_same_samples_and_masked_rows():
    fixed = FixedSet(Samples(), samples=10, rows=12, length=120)
    for evaluation in range(3):
        rows = [fixed[evaluation * 12 + place] for place in range(12)]
        assert [int(row["tokens"]) for row in rows[:10]] == list(range(10))
        assert [float(row["loss_mask"]) for row in rows] == [1.0] * 10 + [0.0] * 2
    assert fixed.split == "valid" and len(fixed) == 120
    assert float(Samples()[0]["loss_mask"]) == 1.0


def test_logits_are_fp32_in_evaluation_alone():
    from megatron_cod.training.validation.fp32_logits import in_fp32

    hidden, weight = torch.full((1, 4), 1.0, dtype=torch.bfloat16), torch.full((2, 4), 0.3, dtype=torch.bfloat16)
    layer = SimpleNamespace(training=False, weight=weight)
    (raised,), named = in_fp32(layer, (hidden,), {"weight": None, "runtime_gather_output": False})
    assert raised.dtype == named["weight"].dtype == torch.float32 and named["runtime_gather_output"] is False
    exact = 4 * float(weight[0, 0])
    assert float((raised @ named["weight"].T)[0, 0]) == exact
    assert in_fp32(SimpleNamespace(training=True, weight=weight), (hidden,), {}) is None
    assert in_fp32(SimpleNamespace(training=False, weight=weight.float()), (hidden.float(),), {}) is None
    tied = {"weight": torch.ones(2, 4, dtype=torch.bfloat16)}
    assert float(in_fp32(layer, (hidden,), tied)[1]["weight"].sum()) == 8.0
