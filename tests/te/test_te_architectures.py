"""Every architecture on Transformer Engine's modules is what it is on the torch backend: logits and gradients.

The torch backend's are compared with the formula in tests/distributed/test_architectures.py. Weights come from their
names (tests/distributed/variants.py), so both models have the same without a checkpoint.
"""

import re
from functools import cache

import pytest

from tests.distributed.architectures import MLA, MOE, VARIANTS
from tests.distributed.launch import WorkerError, run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.oracle_runs import SP, full_logits
from tests.distributed.variants import (
    SHAPE,
    Variant,
    VariantEngine,
    carriers,
    folded,
    gradients,
    relative,
    tokens,
    worker_flags,
)
from tests.te.flags import FUSER, TE

ONE, PP2, TP2 = Layout(), Layout(pp=2), Layout(tp=2, flags=SP)
MTP = ("--mtp-num-layers", "1")
DOWN = ("--mla-down-proj-fusion",)
RESIDUAL = ("--fused-residual-rmsnorm",)
NORMS = ("--recompute-granularity", "selective", "--recompute-modules", "layernorm")
LAYER_NORM = ("--normalization", "LayerNorm")
ZERO = ("--apply-layernorm-1p",)
MORE = {
    **{name: (variant, ()) for name, variant in VARIANTS.items()},
    "mla fused residual": (VARIANTS["mla"], RESIDUAL),
    "moe fused residual": (VARIANTS["moe"], RESIDUAL),
    "moe layernorm recomputed": (VARIANTS["moe"], NORMS),
    "op fuser": (Variant(()), FUSER),
    "LayerNorm": (Variant(LAYER_NORM), ()),
    "LayerNorm zero-centred": (Variant((*LAYER_NORM, *ZERO)), ()),
    "zero-centred": (Variant(ZERO), ()),
    "zero-centred moe": (Variant((*MOE, *ZERO)), ()),
    "LayerNorm zero-centred mla": (Variant((*MLA, *LAYER_NORM, *ZERO)), ()),
    "post_ln": (Variant(("--norm-scheme", "post_ln")), ()),
    "post_ln mla": (Variant((*MLA, "--norm-scheme", "post_ln")), ()),
    "sandwich_ln mla fused residual": (Variant((*MLA, "--norm-scheme", "sandwich_ln")), RESIDUAL),
    "mtp": (Variant(MTP), ()),
    "sandwich_ln moe": (Variant((*MOE, "--norm-scheme", "sandwich_ln")), ()),
    "lns attention": (Variant(("--lns-placement", "attention")), ()),
    "gamma-init": (Variant(("--gamma-init",)), ()),
}
COMBINATIONS = {name for name in MORE if len(name.split()) > 1} - {"op fuser", "moe dense first"}
"""Their parts are tried one by one."""
CASES = [
    *[(name, ONE) for name in MORE],
    *[(name, TP2) for name in ("gqa", "qk-norm", "mla", "zero-centred", "op fuser", "mla fused residual")],
    *[(name, PP2) for name in ("tied", "mla", "moe dense first")],
    ("moe", Layout(dp=2, flags=("--expert-model-parallel-size", "2"))),
]


def worker(_rank: int, variant: Variant, extra: tuple[str, ...], layout: Layout) -> dict:
    args = start(variant, extra, layout)
    engine = VariantEngine(args, layout, args.norm_scheme)
    if not args.gamma_init:  # whose start values are what there is to see
        engine.fill(lambda _, whole: whole - 1.0 if args.layernorm_zero_centered_gamma and whole.dim() == 1 else whole)
    else:
        engine.fill_matrices()
    found = {"lns": engine.forward_backward(tokens(), tokens().roll(-1, -1))}
    return {**found, "carriers": carriers(engine), "factors": factors(engine)}


def start(variant: Variant, extra: tuple[str, ...], layout: Layout):
    from tests.distributed.engine import start_megatron

    return start_megatron([*worker_flags(variant, layout), *extra])


def factors(engine: VariantEngine) -> list[float]:
    from megatron_cod.schemes.depth import DepthScaled

    return [
        module.depth_factor for chunk in engine.model for module in chunk.modules() if isinstance(module, DepthScaled)
    ]


@cache
def torch_backend(name: str) -> list[dict]:
    """One process without Transformer Engine's modules. Recompute of norms changes nothing, and needs them."""
    return run_ranks(1, worker, MORE[name][0], (), ONE)


@pytest.mark.slow_except(
    "dense-one",
    "mla-pp2",
    "mla-tp2 sequence-parallel",
    "moe dense first-one",
    "moe-dp2 expert-model-parallel-size 2",
    "mtp-one",
    "op fuser-tp2 sequence-parallel",
    "qk-norm-tp2 sequence-parallel",
    "recompute-one",
    "tied-pp2",
    "zero-centred-tp2 sequence-parallel",
)
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(name, layout, id=f"{name}-{layout.name}", marks=[pytest.mark.slow] if name in COMBINATIONS else [])
        for name, layout in CASES
    ],
)
def test_equals_model_of_torch_backend(name, layout):
    variant, extra = MORE[name]
    ranks = run_ranks(layout.world, worker, variant, (*TE, *extra), layout)
    expected = torch_backend(name)
    difference = full_logits([rank["lns"] for rank in ranks], layout) - full_logits([expected[0]["lns"]], ONE)
    assert difference.abs().max() <= 1e-5
    assert relative(gradients(ranks, "lns"), gradients(expected, "lns")) <= 2e-5
    scheme = variant.flags[variant.flags.index("--norm-scheme") + 1] if "--norm-scheme" in variant.flags else "lns"
    held = sorted(factor for rank in ranks[:: layout.tp * layout.dp] for factor in rank["factors"])
    per_layer = 1 if "--lns-placement" in variant.flags else 2
    last = SHAPE.layers + ("--mtp-num-layers" in variant.flags)
    right = [number**-0.5 for number in range(last, 0, -1) for _ in range(per_layer)] if scheme == "lns" else []
    assert held == pytest.approx(right)


def both(_rank: int, flags: tuple[str, ...], layout: Layout) -> dict:
    """LNS, and stock Pre-LN with the factor in its gammas."""
    args = start(VARIANTS["mla"], flags, layout)
    found = {}
    for scheme in ("lns", "folded"):
        engine = VariantEngine(args, layout, "lns" if scheme == "lns" else "pre_ln")
        engine.fill(folded if scheme == "folded" else lambda _, whole: whole)
        found[scheme] = engine.forward_backward(tokens(), tokens().roll(-1, -1))
    return found


@pytest.mark.parametrize("layout", [ONE, TP2], ids=lambda layout: layout.name)
def test_the_fused_down_projection_of_latent_attention(layout):
    """Its weight is one that the torch backend has not: compared with Megatron's own with the factor folded in."""
    ranks = run_ranks(layout.world, both, (*TE, *DOWN), layout)
    logits = {scheme: full_logits([rank[scheme] for rank in ranks], layout) for scheme in ("lns", "folded")}
    assert (logits["lns"] - logits["folded"]).abs().max() <= 1e-5
    right = {name: folded(name, whole) for name, whole in gradients(ranks, "folded").items()}
    assert relative(gradients(ranks, "lns"), right) <= 2e-5


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--norm-scheme", "post_ln", *FUSER), "--use-transformer-engine-op-fuser"),
    ],
)
def test_rejects_invalid_combinations(flags, named):
    with pytest.raises(WorkerError, match=f"UserError: .*{re.escape(named)}"):
        run_ranks(1, worker, Variant(()), (*TE, *flags), ONE)
