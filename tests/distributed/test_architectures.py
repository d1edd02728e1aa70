"""Every architecture under LNS over real processes: the factor acts on the two input norms of the right layers, alone.

Three proofs for each: (1) each norm's gain, measured in the forward, is 1/sqrt(l) for the input norms and 1 for all
others; (2) the model is Pre-LN with gamma/sqrt(l), logits and gradients, and not Pre-LN with gamma; (3) at a parallel
layout the gradients are those of one process.
"""

import math
import re
from functools import cache

import pytest
import torch

from tests.distributed.architectures import MLA, VARIANTS
from tests.distributed.launch import WorkerError, run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.oracle_runs import full_logits
from tests.distributed.variants import SCALED, SHAPE, Variant, gradients, layer_of, relative, run_variant

SP = ("--sequence-parallel",)
EP2 = ("--expert-model-parallel-size", "2")

ONE, PP2, TP2, CP2 = Layout(), Layout(pp=2), Layout(tp=2, flags=SP), Layout(cp=2)
CASES = [
    ("dense", PP2),
    ("gqa", TP2),
    ("gqa", PP2),
    ("qk-norm", TP2),
    ("qk-norm", PP2),
    ("tied", PP2),
    ("tied", TP2),
    ("mla", PP2),
    ("mla", TP2),
    ("moe", Layout(dp=2, flags=EP2)),
    ("moe", Layout(pp=2, dp=2, flags=EP2)),
    ("moe shared expert", Layout(dp=2, flags=EP2)),
    ("moe dense first", PP2),
    ("moe dense first", Layout(pp=2, dp=2, flags=EP2)),
    ("recompute", PP2),
    ("gqa", CP2),
    ("qk-norm", CP2),
    ("tied", Layout(cp=2, pp=2)),
    ("mla", CP2),
    ("mla", Layout(tp=2, cp=2, flags=SP)),
    ("moe", Layout(cp=2, flags=EP2)),
]
NAMES = [f"{name}-{layout.name}" for name, layout in CASES]
FAST = ["dense", "moe shared expert"]
FAST_LAYOUTS = ["gqa-tp2 sequence-parallel", "moe-pp2 dp2 expert-model-parallel-size 2", "tied-cp2 pp2"]
"""In ``make test``; the other cases are slow."""


@cache
def results(name: str, layout: Layout) -> list[dict]:
    return run_ranks(layout.world, run_variant, VARIANTS[name], layout)


@pytest.mark.parametrize(("name", "layout"), [*[(n, ONE) for n in VARIANTS], *CASES], ids=[*VARIANTS, *NAMES])
@pytest.mark.slow_except(*FAST, *FAST_LAYOUTS)
def test_the_factor_acts_on_the_input_norms_alone(name, layout):
    ranks, variant = results(name, layout), VARIANTS[name]
    inputs = {f"decoder.layers.{number}.{norm}" for number in range(1, SHAPE.layers + 1) for norm in SCALED}
    others = {f"decoder.layers.{number}.{norm}" for number in range(1, SHAPE.layers + 1) for norm in variant.unscaled}
    assert {carrier for rank in ranks for carrier in rank["carriers"]} == inputs
    measured: dict[str, list[float]] = {}
    for rank in ranks:
        for norm, gains in rank["norms"].items():
            measured.setdefault(norm, []).extend(gains)
    assert measured.keys() == inputs | others | {"decoder.final_layernorm"}
    for norm, gains in measured.items():
        expected = 1 / math.sqrt(layer_of(norm)) if norm in inputs else 1.0
        assert max(abs(gain - expected) for gain in gains) <= 1e-5, (norm, gains, expected)


@pytest.mark.parametrize(("name", "layout"), [*[(n, ONE) for n in VARIANTS], *CASES], ids=[*VARIANTS, *NAMES])
@pytest.mark.slow_except(*FAST, *FAST_LAYOUTS)
def test_equals_pre_ln_with_factor_in_gamma(name, layout):
    ranks = results(name, layout)
    logits = {scheme: full_logits([rank[scheme] for rank in ranks], layout) for scheme in ("lns", "folded", "unfolded")}
    assert (logits["lns"] - logits["folded"]).abs().max() <= 1e-5
    assert (logits["lns"] - logits["unfolded"]).abs().max() > 1e-2
    lns, folded = gradients(ranks, "lns"), gradients(ranks, "folded")
    for weight in lns:
        if re.search(rf"layers\.\d+\.({'|'.join(SCALED)})\.weight", weight):
            lns[weight] = lns[weight] * math.sqrt(layer_of(weight))  # d/dgamma is s times d/d(s gamma)
    assert relative(lns, folded) <= 1e-4


@pytest.mark.parametrize(("name", "layout"), CASES, ids=NAMES)
@pytest.mark.slow_except(*FAST_LAYOUTS)
def test_a_layout_gives_the_gradients_of_one_process(name, layout):
    one = gradients(results(name, ONE), "lns")
    assert relative(gradients(results(name, layout), "lns"), one) <= 1e-4
    logits = full_logits([rank["lns"] for rank in results(name, layout)], layout)
    assert (logits - full_logits([rank["lns"] for rank in results(name, ONE)], ONE)).abs().max() <= 1e-5


def numbered_on_the_stage() -> None:
    """The mutant: layers count from 1 on every stage."""
    from megatron_cod.schemes import design

    right = design.global_layer_number
    design.global_layer_number = lambda layer: (right(layer) - 1) % 2 + 1


def factor_on_query_norms() -> None:
    """The mutant: the query norm is scaled as the input norms are."""
    from megatron.core.transformer.attention import SelfAttention

    right = SelfAttention.__init__

    def init(self, *args, **kwargs):
        right(self, *args, **kwargs)
        if self.q_layernorm is not None:
            number = self.layer_number
            self.q_layernorm.register_forward_hook(lambda _m, _i, out: out / math.sqrt(number))

    SelfAttention.__init__ = init


def experts_without_the_factor() -> None:
    """The mutant: layers of experts are stock ones."""
    from megatron_cod.schemes import design

    right = design.BlockDesign.bind

    def bind(self, layer):
        right(self, layer)
        if layer.is_moe_layer:
            layer.pre_mlp_layernorm.depth_factor = 1.0

    design.BlockDesign.bind = bind


MUTANTS = [
    ("moe dense first", PP2, numbered_on_the_stage),
    ("mla", PP2, numbered_on_the_stage),
    ("qk-norm", ONE, factor_on_query_norms),
    ("moe dense first", ONE, experts_without_the_factor),
]


@pytest.mark.parametrize(("name", "layout", "mutant"), MUTANTS, ids=[f"{m[0]}-{m[2].__name__}" for m in MUTANTS])
@pytest.mark.slow_except("qk-norm-factor_on_query_norms")
def test_detects_wrong_factor(name, layout, mutant):
    ranks = run_ranks(layout.world, run_variant, VARIANTS[name], layout, mutant)
    logits = {scheme: full_logits([rank[scheme] for rank in ranks], layout) for scheme in ("lns", "folded")}
    # A wrong query norm is wrong in both, and seen by its measured gain alone.
    gains = {norm: gain for rank in ranks for norm, found in rank["norms"].items() for gain in found}
    wrong = [
        norm
        for norm, gain in gains.items()
        if abs(gain - (1 / math.sqrt(layer_of(norm)) if norm.split(".")[-1] in SCALED else 1.0)) > 1e-3
    ]
    assert wrong
    assert mutant is factor_on_query_norms or (logits["lns"] - logits["folded"]).abs().max() > 1e-2


def test_bf16_keeps_the_factor():
    """bf16 weights and activations: every norm's gain within bf16's rounding, none at another layer's."""
    ranks = run_ranks(2, run_variant, Variant(("--bf16",)), PP2, None, ("lns",))
    gains = {norm: found for rank in ranks for norm, found in rank["norms"].items()}
    assert len(gains) == 2 * SHAPE.layers + 1
    for norm, found in gains.items():
        expected = 1 / math.sqrt(layer_of(norm)) if norm.split(".")[-1] in SCALED else 1.0
        assert max(abs(gain - expected) for gain in found) <= 0.01, norm


REFUSED = {
    "mla, tp without sp": (Layout(tp=2), MLA, "without --sequence-parallel"),
    "norm recompute": (
        ONE,
        ("--recompute-granularity", "selective", "--recompute-modules", "layernorm"),
        "--recompute-modules layernorm",
    ),
}


@pytest.mark.parametrize(("layout", "flags", "said"), REFUSED.values(), ids=REFUSED)
def test_rejects_unsupported_architectures(layout, flags, said):
    with pytest.raises(WorkerError, match=rf"UserError: --norm-scheme lns does not support.*{re.escape(said)}"):
        run_ranks(layout.world, run_variant, Variant(flags), layout, None, ("lns",))


def test_weights_are_the_same_at_every_layout():
    """What the proofs stand on: the seeded weights do not depend on the layout."""
    from tests.distributed.variants import values

    assert torch.equal(
        values("decoder.layers.3.mlp.linear_fc2.weight", (4, 4)),
        values("decoder.layers.3.mlp.linear_fc2.weight", (4, 4)),
    )
    assert not torch.equal(values("decoder.layers.3.x", (4, 4)), values("decoder.layers.2.x", (4, 4)))
