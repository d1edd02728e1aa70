"""What the specs build: Pre-LN is stock Megatron, LNS differs in two modules, and what is unsupported is refused."""

import re

import pytest
import torch

from tests.distributed.engine import MODEL_FLAGS, Engine, shape_flags, start_megatron
from tests.distributed.launch import WorkerError, run_ranks
from tests.distributed.mapping import Layout
from tests.oracle import Shape

SHAPE = Shape(layers=4)
BATCH = ["--micro-batch-size", "1", "--global-batch-size", "2"]
TP2_SP = Layout(tp=2, flags=("--sequence-parallel",))


def describe(model: torch.nn.Module) -> dict:
    module = model.module
    return {
        "classes": {name: type(child).__name__ for name, child in module.named_modules()},
        "parameters": {name: tuple(p.shape) for name, p in module.named_parameters()},
        "buffers": [name for name, _ in module.named_buffers()],
        "keys": sorted(module.state_dict()),
        "sharded": sorted({tensor.key for tensor in module.sharded_state_dict().values() if hasattr(tensor, "key")}),
    }


def built(_rank: int, flags: list[str], layout: Layout) -> dict:
    """The model under both schemes, and as Megatron alone builds it."""
    from megatron_cod import model as ours

    args = start_megatron([*MODEL_FLAGS, *shape_flags(SHAPE, 32), *BATCH, *layout.all_flags(), *flags])
    found = {scheme: describe(Engine(args, layout, SHAPE, scheme).model[0]) for scheme in ("pre_ln", "lns")}
    if not args.sequence_parallel:
        ours.attach_design = lambda config, design, backend, own_layers: None
        found["megatron"] = describe(Engine(args, layout, SHAPE, "pre_ln").model[0])
    return found


def changes(one: dict, other: dict) -> set[str]:
    """Modules, named within their layer, whose class differs; what lies inside core attention is not a module's name."""
    names = {
        name
        for name in one["classes"].keys() & other["classes"].keys()
        if one["classes"][name] != other["classes"][name]
    }
    return {re.sub(r"^decoder\.layers\.\d+\.?", "", name) for name in names}


FASTER = {
    *("self_attention", "self_attention.core_attention", "self_attention.linear_qkv", "self_attention.linear_proj"),
    *("mlp", "mlp.linear_fc1", "mlp.linear_fc2"),
}
"""Megatron's modules that the torch backend replaces, with the same parameters and the same function."""
RMS_NORMS = {"input_layernorm", "pre_mlp_layernorm", "decoder.final_layernorm"}
QK_NORMS = {"self_attention.q_layernorm", "self_attention.k_layernorm"}


@pytest.mark.slow_except("--normalization LayerNorm", "--qk-layernorm")
@pytest.mark.parametrize("flags", [[], ["--normalization", "LayerNorm"], ["--qk-layernorm"]], ids=" ".join)
def test_pre_ln_is_stock_and_lns_adds_nothing(flags):
    found = run_ranks(1, built, flags, Layout())[0]
    stock, pre_ln, lns = found["megatron"], found["pre_ln"], found["lns"]
    for key in ("parameters", "buffers", "keys", "sharded"):
        assert pre_ln[key] == stock[key]
        assert lns[key] == stock[key]
    norms = set() if "LayerNorm" in flags else RMS_NORMS | (QK_NORMS if "--qk-layernorm" in flags else set())
    assert changes(stock, pre_ln) == FASTER | norms
    assert changes(pre_ln, lns) == {"", "input_layernorm", "pre_mlp_layernorm"}
    assert lns["classes"]["decoder.final_layernorm"] == pre_ln["classes"]["decoder.final_layernorm"]


@pytest.mark.parametrize("kind", ["RMSNorm", "LayerNorm"])
def test_norms_run_under_sequence_parallelism(kind):
    found = run_ranks(2, built, ["--normalization", kind], TP2_SP)[0]
    for scheme, norm in (("pre_ln", f"Torch{kind}"), ("lns", f"DepthScaledTorch{kind}")):
        assert found[scheme]["classes"]["decoder.layers.0.input_layernorm"] == norm
        assert found[scheme]["classes"]["decoder.final_layernorm"] == f"Torch{kind}"


def factors_after(_rank: int, flags: list[str]) -> dict:
    """Factors and one training step in bf16, for both norm kinds."""
    from megatron_cod.depth_map import stage_layers

    args = start_megatron([*MODEL_FLAGS, *shape_flags(SHAPE, 32), *BATCH, *flags])
    engine = Engine(args, Layout(), SHAPE, "lns")
    before = stage_layers(engine.model[0], 0, 0).factors
    if args.init_model_with_meta_device:  # Megatron leaves the weights to a checkpoint then: give them values
        for _, _, parameter in engine.parameters():
            torch.nn.init.ones_(parameter) if parameter.dim() == 1 else torch.nn.init.normal_(parameter, std=0.02)
    tokens = torch.randint(0, SHAPE.vocab, (3, 2, 32), generator=torch.Generator().manual_seed(1))
    losses = engine.train(tokens, tokens.roll(-1, -1))
    return {"before": before, "after": stage_layers(engine.model[0], 0, 0).factors, "losses": losses}


@pytest.mark.parametrize(
    "flags",
    [
        ["--bf16"],
        ["--bf16", "--normalization", "LayerNorm"],
        ["--bf16", "--use-distributed-optimizer"],
        ["--init-model-with-meta-device"],
        ["--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1"],
        ["--bf16", "--fp32-residual-connection"],
    ],
    ids=" ".join,
)
@pytest.mark.slow_except(
    "--bf16 --use-distributed-optimizer",
    "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
)
def test_factors_survive_casts_and_recompute(flags):
    found = run_ranks(1, factors_after, flags)[0]
    expected = tuple((number**-0.5,) * 2 for number in range(1, SHAPE.layers + 1))
    assert found["before"] == found["after"] == expected
    assert all(loss == loss and loss < 50 for loss in found["losses"])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--mtp-num-layers", "1", "--mtp-use-repeated-layer"], "--mtp-use-repeated-layer"),
        (["--recompute-granularity", "selective", "--recompute-modules", "layernorm"], "--recompute-modules layernorm"),
        (["--transformer-impl", "transformer_engine"], "--transformer-impl transformer_engine"),
        (["--spec", "megatron_cod.layer_specs", "lns"], "--spec and --norm-scheme"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_rejects_unsupported_flags(flags, named):
    with pytest.raises(WorkerError, match=f"UserError: .*{re.escape(named)}"):
        run_ranks(1, factors_after, flags)


def stock_spec(_rank: int, name: str) -> dict:
    """As an unmodified Megatron-LM would: ``--spec``, and nothing of our training entry."""
    from megatron_cod import model as ours
    from megatron_cod.depth_map import stage_layers

    ours.attach_design = lambda config, design, backend, own_layers: None
    spec = ["--spec", "megatron_cod.layer_specs", name]
    args = start_megatron([*MODEL_FLAGS, *shape_flags(SHAPE, 32), *BATCH, *Layout(pp=2, vp=2).all_flags(), *spec])
    engine = Engine(args, Layout(pp=2, vp=2), SHAPE, "pre_ln")
    weight = engine.model[0].module.decoder.layers[0].mlp.linear_fc2.weight
    stages = [stage_layers(chunk, engine.pp_rank, index) for index, chunk in enumerate(engine.model)]
    return {"std": float(weight.std()), "layers": [s.layers for s in stages], "factors": [s.factors for s in stages]}


def test_the_spec_works_in_stock_megatron():
    first, second = run_ranks(2, stock_spec, "lns")
    assert (first["layers"], second["layers"]) == ([(1,), (3,)], [(2,), (4,)])
    assert second["factors"][1] == ((0.5, 0.5),)
    assert abs(first["std"] - 0.02) < 0.002
    stock = run_ranks(2, stock_spec, "pre_ln")[0]
    assert stock["factors"] == [((),), ((),)]
    assert abs(stock["std"] - 0.02 / 8**0.5) < 0.001
