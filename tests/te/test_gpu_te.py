"""The real Transformer Engine on a real GPU. None of it was run yet where it says so in docs/performance.md."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed import packing
from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.oracle_runs import SP, VECTORS, compare, worker
from tests.te.norms import DEVICE, EPS, FACTOR, H, config, linear, norm, relative

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_process")]
BACKENDS = {
    "torch": ("--backend", "torch"),
    "transformer_engine": ("--backend", "transformer_engine", "--no-gradient-accumulation-fusion"),
}
LAYOUTS = [Layout(), Layout(tp=2, flags=SP), Layout(pp=2), Layout(tp=2, pp=2, flags=SP)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("precision", "logits", "grad"), [((), 2e-3, 2e-4), (("--bf16",), 0.15, 1e-2)], ids=["fp32", "bf16"]
)
def test_the_model_agrees_with_the_vectors(backend, layout, precision, logits, grad):
    """fp32 products may run in TF32 there, hence not the CPU's tolerances. Layouts need as many GPUs as ranks."""
    layout = Layout(layout.tp, layout.pp, layout.vp, layout.dp, (*BACKENDS[backend], *precision, *layout.flags))
    results = run_ranks(layout.world, worker, layout)
    for scheme in ("pre_ln", "lns"):
        found = compare([result[scheme] for result in results], layout, load_file(VECTORS), scheme)
        assert found["logits"] <= logits and found["grad"] <= grad, (scheme, found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_samples_are_as_if_alone(backend):
    """In bf16, where Transformer Engine takes cuDNN's or flash attention for the ``thd`` format, and fused RoPE."""
    layout = Layout(flags=(*BACKENDS[backend], "--bf16"))
    right = packing.differences(run_ranks(1, packing.worker, layout), layout, "lns")
    leaky = run_ranks(1, partial(packing.worker, mutate=packing.leaks), layout)
    assert right["loss"] <= 0.15 < packing.differences(leaky, layout, "lns")["loss"], right


def recipes() -> dict:
    from transformer_engine.common import recipe

    names = ("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling", "MXFP8BlockScaling")
    return {name: getattr(recipe, name) for name in names if hasattr(recipe, name)}


@pytest.mark.parametrize("name", ["DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling", "MXFP8BlockScaling"])
def test_fp8_is_near_bf16(name):
    """The factor is in the quantised activations: outputs and gamma's gradient within what FP8 costs without it."""
    import transformer_engine.pytorch as te

    available = {
        "MXFP8BlockScaling": getattr(te, "is_mxfp8_available", lambda: False)(),
        "Float8BlockScaling": getattr(te, "is_fp8_block_scaling_available", lambda: False)(),
    }
    if name not in recipes() or not available.get(name, te.is_fp8_available()):
        pytest.skip(f"{name} is not available on this GPU")
    torch.manual_seed(0)
    cfg = config("RMSNorm", params_dtype=torch.bfloat16)
    module = type(linear(cfg))(
        *(256, 256),
        config=cfg,
        init_method=torch.nn.init.normal_,
        gather_output=False,
        bias=False,
        skip_bias_add=False,
        is_expert=False,
    )
    module.depth_factor = FACTOR
    x = torch.randn(128, 1, 256, device=DEVICE, dtype=torch.bfloat16)
    found = []
    for enabled in (False, True):
        module.zero_grad()
        with te.fp8_autocast(enabled=enabled, fp8_recipe=recipes()[name]()):
            out = module(x)[0]
        out.float().square().sum().backward()
        found.append((out.detach(), module.layer_norm_weight.grad.clone()))
    for low, high in zip(found[1], found[0], strict=True):
        assert relative(low, high.double().cpu()) <= 0.1


def test_graph_replay_reads_the_new_gamma():
    module = norm(config("RMSNorm", params_dtype=torch.bfloat16))
    module.depth_factor = FACTOR
    x = torch.randn(64, H, device=DEVICE, dtype=torch.bfloat16)
    with torch.no_grad():
        module(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = module(x)
        module.weight.mul_(3.0)
        graph.replay()
        torch.cuda.synchronize()
        wide = x.double().cpu()
        right = 3 * FACTOR * wide / (wide.pow(2).mean(-1, keepdim=True) + EPS).sqrt()
        assert relative(out, right) <= 2e-2


def test_graphed_callables_train_as_without():
    """``make_graphed_callables`` of Transformer Engine, which refuses modules with hooks: gradients of gamma, replayed."""
    import transformer_engine.pytorch as te

    def module():
        torch.manual_seed(0)
        made = linear(config("RMSNorm", params_dtype=torch.bfloat16))
        made.depth_factor = FACTOR
        return made

    plain, sample = module(), torch.randn(64, 1, H, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    graphed = te.make_graphed_callables(module(), (sample,))
    gradients = []
    for one in (plain, graphed):
        x = sample.detach().clone().requires_grad_()
        one(x)[0].float().square().sum().backward()
        gradients.append((one.layer_norm_weight.grad, x.grad))
    for ours, right in zip(gradients[1], gradients[0], strict=True):
        assert relative(ours, right.double().cpu()) <= 2e-2
