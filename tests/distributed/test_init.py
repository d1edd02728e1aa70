"""Initial standard deviations per parameter kind, against what the policy says; scaled init left on is caught."""

import math

import pytest
import torch

from tests.distributed.engine import MODEL_FLAGS, Engine, shape_flags, start_megatron
from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.oracle import Shape

SHAPE = Shape(layers=6, hidden=128, ffn=256, heads=4)
STD, EMBEDDING_STD = 0.02, 0.632
OUTPUTS = ("linear_proj.weight", "linear_fc2.weight")


def standard_deviations(_rank: int, cases: list[tuple[str, str | None]]) -> list[dict]:
    flags = ["--init-method-std", str(STD), "--embedding-init-method-std", str(EMBEDDING_STD)]
    batch = ["--micro-batch-size", "1", "--global-batch-size", "2"]
    args = start_megatron([*MODEL_FLAGS, *shape_flags(SHAPE, 32), *batch, *flags, *Layout(pp=2).all_flags()])
    results = []
    for scheme, policy in cases:
        engine = Engine(args, Layout(pp=2), SHAPE, scheme, policy)
        kinds: dict[str, list[torch.Tensor]] = {}
        for _, name, parameter in engine.parameters():
            kinds.setdefault(".".join(name.split(".")[-2:]), []).append(parameter.detach().flatten())
        results.append({kind: (float(torch.cat(v).std()), sum(map(len, v))) for kind, v in kinds.items()})
    return results


def wrong_kinds(found: dict, output_std: float) -> list[str]:
    """Kinds whose std is more than 6 standard errors from what it should be."""
    wrong = []
    for kind, (std, count) in found.items():
        if "norm" in kind:
            expected, tolerance = 0.0, 0.0
        else:
            expected = EMBEDDING_STD if "embeddings" in kind else output_std if kind in OUTPUTS else STD
            tolerance = 6 * expected / math.sqrt(2 * count)
        if abs(std - expected) > tolerance:
            wrong.append(kind)
    return sorted(wrong)


SCALED = STD / math.sqrt(2 * SHAPE.layers)
CASES = [
    ("lns", None, STD),
    ("lns", "scaled", SCALED),
    ("pre_ln", None, SCALED),
    ("pre_ln", "normal", STD),
]


@pytest.fixture(scope="module")
def measured():
    return run_ranks(2, standard_deviations, [case[:2] for case in CASES])


@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{s}-{p}" for s, p, _ in CASES])
def test_standard_deviations(measured, index):
    for stage in measured:
        assert wrong_kinds(stage[index], CASES[index][2]) == []


def test_scaled_initialisation_left_on_is_caught(measured):
    """The mutant: LNS under Megatron's own initialisation, held against what LNS asks for."""
    assert wrong_kinds(measured[0][1], STD) == sorted(OUTPUTS)
