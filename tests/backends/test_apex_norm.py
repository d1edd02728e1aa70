"""Megatron's LayerNorm on Apex's kernels, with a factor, against the formula; the kernels are stand-ins."""

import importlib.util
import inspect

import pytest
import torch
from megatron.core.fusions import fused_layer_norm
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_cod.backends import apex_norm as module
from megatron_cod.backends.apex_norm import apex_norm, deferred_apex_norm, depth_scaled_apex_norm
from tests.backends import apex_stand_ins
from tests.backends.norms import formula
from tests.distributed.launch import WorkerError, run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.oracle_runs import SP, full_logits
from tests.distributed.variants import Variant, VariantEngine, carriers, gradients, relative, tokens, worker_flags

EPS, FACTOR = 1e-6, 126**-0.5
HIDDEN = {"fused": 48, "persistent": 1024}
"""A hidden size for which Megatron takes one kernel or the other."""


@pytest.fixture(autouse=True)
def apex(monkeypatch):
    names = ("FastLayerNormFN", "FusedLayerNormAffineFunction", "HAVE_PERSIST_LAYER_NORM", "HAVE_FUSED_LAYER_NORM")
    for name in names:  # remembers what was there, and puts it back
        monkeypatch.setattr(fused_layer_norm, name, getattr(fused_layer_norm, name, None), raising=False)
    if importlib.util.find_spec("apex") is None:
        apex_stand_ins.install()


def config(hidden: int, kind: str = "LayerNorm", zero: bool = False) -> TransformerConfig:
    return TransformerConfig(
        num_layers=2,
        hidden_size=hidden,
        num_attention_heads=4,
        normalization=kind,
        layernorm_zero_centered_gamma=zero,
        persist_layer_norm=True,
    )


def differences(kernel: str, zero: bool) -> dict[str, float]:
    torch.manual_seed(0)
    hidden = HIDDEN[kernel]
    norm = depth_scaled_apex_norm(config(hidden, zero=zero), hidden, EPS)
    assert norm.persist_layer_norm == (kernel == "persistent")
    norm.depth_factor = FACTOR
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.3 * torch.randn(hidden))
    x = torch.randn(7, 3, hidden, requires_grad=True)
    out = norm(x)
    direction = torch.randn_like(out)
    out.backward(direction)
    leaves = [parameter.detach().double().requires_grad_() for parameter in norm.parameters()]
    wide = x.detach().double().requires_grad_()
    right = formula("LayerNorm", wide, leaves[0] + zero, leaves[1], FACTOR)
    right.backward(direction.double())
    pairs = {"out": (out, right), "dx": (x.grad, wide.grad)}
    for name, parameter, leaf in zip(("d gamma", "d beta"), norm.parameters(), leaves, strict=True):
        pairs[name] = (parameter.grad, leaf.grad)
    return {name: float((a.double() - b).abs().max() / b.abs().max()) for name, (a, b) in pairs.items()}


@pytest.mark.parametrize("kernel", HIDDEN)
@pytest.mark.parametrize("zero", [False, True])
def test_norm_equals_formula(kernel, zero):
    found = differences(kernel, zero)
    assert max(found.values()) <= 1e-6, found


@pytest.mark.parametrize("forgotten", ["weight", "bias", "zero_centered_gamma"])
def test_detects_value_that_is_not_scaled(forgotten, monkeypatch):
    """The mutants: gamma or beta as it is, or the kernel given s * (1 + g) adds another 1."""
    right = module.shadowed
    monkeypatch.setattr(
        module, "shadowed", lambda norm, values: right(norm, {k: v for k, v in values.items() if k != forgotten})
    )
    assert differences("fused", zero=True)["out"] > 0.1


@pytest.mark.parametrize("build", [apex_norm, depth_scaled_apex_norm, deferred_apex_norm])
def test_rejects_rms_norm(build):
    with pytest.raises(ValueError, match="Apex has LayerNorm, not --normalization RMSNorm"):
        build(config(48, "RMSNorm"), 48, EPS)


@pytest.mark.skipif(importlib.util.find_spec("apex") is None, reason="NVIDIA Apex is not installed")
def test_stand_ins_have_the_signatures_of_apex():
    for name in ("FastLayerNormFN", "FusedLayerNormAffineFunction"):
        real = inspect.signature(getattr(fused_layer_norm, name).forward).parameters
        assert list(real) == list(inspect.signature(getattr(apex_stand_ins, name).forward).parameters)


def worker(_rank: int, layout: Layout, flags: tuple[str, ...]) -> dict:
    from tests.distributed.engine import start_megatron

    apex_stand_ins.install()
    args = start_megatron(worker_flags(Variant(("--normalization", "LayerNorm", *flags)), layout))
    engine = VariantEngine(args, layout, args.norm_scheme)
    engine.fill(lambda _, whole: whole)
    norms = {type(m).__name__ for chunk in engine.model for n, m in chunk.named_modules() if n.endswith("layernorm")}
    out = engine.forward_backward(tokens(), tokens().roll(-1, -1))
    return {"lns": out, "norms": norms, "carriers": len(carriers(engine))}


@pytest.mark.parametrize("scheme", ["lns", "post_ln", "sandwich_ln"])
@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2, flags=SP)], ids=lambda layout: layout.name)
@pytest.mark.slow
def test_the_model_is_that_of_the_torch_backend(scheme, layout):
    flags = ("--norm-scheme", scheme)
    on_apex = run_ranks(layout.world, worker, layout, (*flags, "--backend", "apex"))
    on_torch = run_ranks(1, worker, Layout(), (*flags, "--backend", "torch"))
    assert not any("Torch" in name for name in on_apex[0]["norms"])
    assert not any("Apex" in name or "Fused" in name for name in on_torch[0]["norms"])
    assert on_apex[0]["carriers"] == on_torch[0]["carriers"] == (8 if scheme == "lns" else 0)
    logits = full_logits([rank["lns"] for rank in on_apex], layout) - full_logits([on_torch[0]["lns"]], Layout())
    assert logits.abs().max() <= 1e-5
    assert relative(gradients(on_apex, "lns"), gradients(on_torch, "lns")) <= 2e-5


def test_uses_layer_norm_of_installed_apex():
    assert "DepthScaledApexLayerNorm" in run_ranks(1, worker, Layout(), ())[0]["norms"]


def without_apex(_rank: int) -> None:
    from tests.distributed.engine import start_megatron

    args = start_megatron([*worker_flags(Variant(("--backend", "apex")), Layout())])
    VariantEngine(args, Layout(), "lns")


@pytest.mark.skipif(importlib.util.find_spec("apex") is not None, reason="NVIDIA Apex is installed")
def test_rejects_missing_apex():
    with pytest.raises(WorkerError, match="UserError: --backend apex: NVIDIA Apex is not installed"):
        run_ranks(1, without_apex)
