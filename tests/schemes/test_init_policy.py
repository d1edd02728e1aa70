"""Initial standard deviations per kind of weight and global layer, against what the policy says, over layouts."""

import math

import pytest

from tests.distributed.engine import MODEL_FLAGS, Engine, shape_flags, start_megatron
from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.oracle import Shape
from tests.oracle_schemes import initial_std

SHAPE = Shape(layers=6, hidden=128, ffn=256, heads=4, groups=2)
STD, EMBEDDING_STD = 0.02, 0.632
CASES = [
    ("lns", None, "normal"),
    ("lns", "scaled", "scaled"),
    ("lns", "depth_scaled", "depth_scaled"),
    ("pre_ln", None, "scaled"),
    ("pre_ln", "normal", "normal"),
    ("pre_ln", "depth_scaled", "depth_scaled"),
    ("deepnorm", None, "deepnorm"),
    ("post_ln", None, "normal"),
    ("mix_ln", None, "normal"),
    ("sandwich_ln", None, "normal"),
    ("layerscale", None, "normal"),
    ("skipinit", None, "normal"),
]
LAYOUTS = [
    pytest.param(Layout(), marks=pytest.mark.slow),
    pytest.param(Layout(pp=2), marks=pytest.mark.slow),
    pytest.param(Layout(tp=2, pp=2), marks=pytest.mark.slow),
    Layout(pp=3, vp=2),
]
SCALES = {"layerscale": 0.1, "skipinit": 0.0}

Measured = dict[str, list[tuple[float, float, int]]]
"""Hugging Face name -> (mean, sum of squares about the mean, elements) of each rank's shard."""


def measure(_rank: int, layout: Layout, mutate=None) -> list[Measured]:
    if mutate is not None:
        mutate()
    flags = ["--init-method-std", str(STD), "--embedding-init-method-std", str(EMBEDDING_STD)]
    flags += ["--group-query-attention", "--num-query-groups", str(SHAPE.groups)]
    batch = ["--micro-batch-size", "1", "--global-batch-size", "2"]
    args = start_megatron([*MODEL_FLAGS, *shape_flags(SHAPE, 32), *batch, *flags, *layout.all_flags()])
    results = []
    for scheme, policy, _ in CASES:
        found: Measured = {}
        for name, _where, tensor in Engine(args, layout, SHAPE, scheme, policy).parts("data"):
            mean = float(tensor.mean())
            found.setdefault(name, []).append((mean, float((tensor - mean).square().sum()), tensor.numel()))
        results.append(found)
    return results


def merged(ranks: list[Measured]) -> dict[str, tuple[float, int]]:
    """Name -> (standard deviation about the shards' means, elements)."""
    shards: Measured = {}
    for rank in ranks:
        for name, parts in rank.items():
            shards.setdefault(name, []).extend(parts)
    return {
        n: (math.sqrt(sum(p[1] for p in s) / sum(p[2] for p in s)), sum(p[2] for p in s)) for n, s in shards.items()
    }


def wrong(found: dict[str, tuple[float, int]], policy: str) -> list[str]:
    """Weights whose standard deviation is more than 6 standard errors from the policy's."""
    result = []
    for name, (std, count) in found.items():
        kind = name.removesuffix(".weight").removesuffix("_proj").split(".")[-1]
        if "norm" in kind or kind.endswith("scale"):
            expected = 0.0
        elif kind in ("embed_tokens", "lm_head"):
            expected = EMBEDDING_STD if kind == "embed_tokens" else STD
        else:
            expected = initial_std(policy, kind, int(name.split(".")[2]) + 1, SHAPE, STD)
        if abs(std - expected) > 6 * expected / math.sqrt(2 * count) + 1e-7:
            result.append(name)
    return sorted(result)


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: layout.name)
def measured(request):
    return run_ranks(request.param.world, measure, request.param)


@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{s}-{p}" for s, p, _ in CASES])
def test_standard_deviations_equal_the_formulas(measured, index):
    found = merged([rank[index] for rank in measured])
    assert len([name for name in found if "_proj" in name]) == 7 * SHAPE.layers
    assert wrong(found, CASES[index][2]) == []


def test_start_values_of_learned_scales(measured):
    for scheme, start in SCALES.items():
        index = [case[0] for case in CASES].index(scheme)
        means = {p[0] for rank in measured for n, parts in rank[index].items() if n.endswith("_scale") for p in parts}
        assert len(means) == 1
        assert means.pop() == pytest.approx(start)


def outputs(*blocks: int) -> list[str]:
    return sorted(f"model.layers.{b}.{n}.weight" for b in blocks for n in ("mlp.down_proj", "self_attn.o_proj"))


def test_scaled_initialisation_left_on_is_caught(measured):
    """The mutant: LNS under Megatron's own initialisation, compared with what LNS asks for."""
    assert wrong(merged([rank[1] for rank in measured]), "normal") == outputs(*range(SHAPE.layers))


def depth_of_the_stage() -> None:
    """The mutant: depth-scaled initialisation by the layer's number in its stage."""
    from megatron_cod.schemes import design

    right = design.global_layer_number
    design.global_layer_number = lambda layer: (right(layer) - 1) % 3 + 1


def beta_with_the_wrong_sign() -> None:
    """The mutant: DeepNorm's gain is (8L)^(1/4)."""
    from megatron_cod.schemes import init_policy

    init_policy.deepnorm_beta = lambda layers: (8 * layers) ** 0.25


@pytest.mark.slow_except("depth_of_the_stage")
@pytest.mark.parametrize("mutate", [depth_of_the_stage, beta_with_the_wrong_sign])
def test_detects_wrong_initialisation(mutate):
    layout = Layout(pp=2)
    ranks = run_ranks(2, without_the_depth_check, layout, mutate)
    depth_scaled, deepnorm = (merged([rank[i] for rank in ranks]) for i in (5, 6))
    if mutate is depth_of_the_stage:
        assert wrong(depth_scaled, "depth_scaled") == outputs(3, 4, 5)
    else:
        assert len(wrong(deepnorm, "deepnorm")) == 5 * SHAPE.layers  # all but q and k


def without_the_depth_check(rank: int, layout: Layout, mutate) -> list[Measured]:
    from megatron_cod import model

    model.refuse_wrong_depth = lambda chunks, factor: chunks
    return measure(rank, layout, mutate)
