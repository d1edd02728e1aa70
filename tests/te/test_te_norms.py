"""Transformer Engine's modules with a factor against s * norm(x) written out in float64: outputs and every gradient."""

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from tests.te.norms import DEVICE, EPS, FACTOR, OUT, H, config, linear, norm, relative

pytestmark = pytest.mark.usefixtures("one_process")
# A GPU's products of fp32 may run in TF32.
TOLERANCE = {"linear": 2e-3, "op-fuser MLP": 5e-3} if DEVICE == "cuda" else {}


def fused_residual(cfg: TransformerConfig) -> torch.nn.Module:
    from megatron_cod.backends.te_norm import depth_scaled_te_norm_with_residual

    cfg.fused_residual_rmsnorm = True
    return depth_scaled_te_norm_with_residual(cfg, H, EPS)


def op_fuser_mlp(cfg: TransformerConfig, owner: str = "DepthScaledTEFusedMLP") -> torch.nn.Module:
    from megatron.core.extensions.transformer_engine import TERowParallelLinear
    from megatron.core.parallel_state import get_tensor_model_parallel_group
    from megatron.core.transformer.mlp import MLPSubmodules

    from megatron_cod.backends import te_linear

    parts = MLPSubmodules(
        linear_fc1=te_linear.DepthScaledTELayerNormColumnParallelLinear, linear_fc2=TERowParallelLinear
    )
    return getattr(te_linear, owner)(cfg, parts, tp_group=get_tensor_model_parallel_group())


MODULES = {
    "linear": (linear, ("RMSNorm", "LayerNorm")),
    "norm": (norm, ("RMSNorm", "LayerNorm")),
    "fused residual": (fused_residual, ("RMSNorm",)),
    "op-fuser MLP": (op_fuser_mlp, ("RMSNorm", "LayerNorm")),
}
CASES = [(name, kind, zero) for name, (_, kinds) in MODULES.items() for kind in kinds for zero in (False, True)]


def carrier(module: torch.nn.Module) -> torch.nn.Module:
    """What the layer binds the factor to."""
    return getattr(module, "linear_fc1", module)


def named(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """gamma, beta and weights, whatever the module calls them."""
    names = {"layer_norm_weight": "gamma", "layer_norm_bias": "beta", "linear_fc1.layer_norm_weight": "gamma"}
    names |= {"linear_fc1.layer_norm_bias": "beta", "bias": "beta"}
    alone = not any(name.endswith("layer_norm_weight") for name, _ in module.named_parameters())
    if alone:
        names["weight"] = "gamma"
    return {names.get(name, name): parameter for name, parameter in module.named_parameters()}


def outcome(name: str, kind: str, zero: bool, mutate=None, dtype: torch.dtype = torch.float32) -> dict:
    """Outputs and gradients of the module, and of the formula in float64 on the same numbers."""
    torch.manual_seed(5)
    module = MODULES[name][0](config(kind, zero, params_dtype=dtype))
    with torch.no_grad():
        for key, parameter in named(module).items():
            around = (0.0 if zero else 1.0) if key == "gamma" else 0.0
            parameter.copy_(around + 0.3 * torch.randn(parameter.shape))
    carrier(module).depth_factor = FACTOR
    if mutate is not None:
        mutate(module)
    x = torch.randn(7, 3, H).to(DEVICE, dtype).requires_grad_()
    raw = module(x)
    outputs = [one for one in (raw if isinstance(raw, tuple) else (raw,)) if one is not None]
    directions = [torch.randn(one.shape).to(one) for one in outputs]
    torch.autograd.backward(outputs, directions)

    leaves = {key: p.detach().double().cpu().requires_grad_() for key, p in named(module).items()}
    wide = x.detach().double().cpu().requires_grad_()
    expected = [formula(name, kind, zero, wide, leaves)]
    if name == "fused residual":
        expected.append(wide * 1.0)
    torch.autograd.backward(expected, [one.double().cpu() for one in directions])
    found = {f"output {place}": (a, b) for place, (a, b) in enumerate(zip(outputs, expected, strict=True))}
    found["dx"] = (x.grad, wide.grad)
    for key, parameter in named(module).items():
        found[f"d {key}"] = (parameter.grad, leaves[key].grad)
    return {key: relative(*pair) for key, pair in found.items()}


def formula(name: str, kind: str, zero: bool, x: torch.Tensor, leaves: dict) -> torch.Tensor:
    gamma = leaves["gamma"] + 1 if zero else leaves["gamma"]
    if kind == "LayerNorm":
        normalized = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + EPS).sqrt()
        scaled = FACTOR * (normalized * gamma + leaves["beta"])
    else:
        scaled = FACTOR * (x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * gamma)
    if name == "linear":
        return scaled @ leaves["weight"].t()
    if name == "op-fuser MLP":
        gate, up = (scaled @ leaves["linear_fc1.weight"].t()).chunk(2, -1)
        return (torch.nn.functional.silu(gate) * up) @ leaves["linear_fc2.weight"].t()
    return scaled


@pytest.mark.parametrize(("name", "kind", "zero"), CASES)
def test_it_is_the_formula(name, kind, zero):
    found = outcome(name, kind, zero)
    assert {"output 0", "dx", "d gamma"} <= found.keys()
    assert ("d beta" in found) == (kind == "LayerNorm")
    assert max(found.values()) <= TOLERANCE.get(name, 1e-6), found


@pytest.mark.parametrize(("name", "kind", "zero"), CASES)
def test_in_bf16_it_stays_within_its_rounding(name, kind, zero):
    found = outcome(name, kind, zero, dtype=torch.bfloat16)
    assert max(found.values()) <= 3e-2, found


@pytest.mark.parametrize(("name", "kind", "zero"), CASES)
def test_names_keys_and_identity_are_the_stock_modules(name, kind, zero):
    cfg = config(kind, zero)
    module = MODULES[name][0](cfg)
    stock_class = next(cls for cls in type(module).__mro__ if not cls.__module__.startswith("megatron_cod"))
    carrier(module).depth_factor = FACTOR
    before = dict(module.named_parameters())
    module(torch.randn(5, 2, H, device=DEVICE))
    after = dict(module.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[key] is after[key] for key in before)
    assert not any("depth" in key for key in module.state_dict())
    if name == "linear":
        stock = stock_class(
            *(H, OUT),
            config=cfg,
            init_method=torch.nn.init.normal_,
            gather_output=False,
            bias=False,
            skip_bias_add=False,
            is_expert=False,
        )
        assert stock.state_dict().keys() == module.state_dict().keys()


@pytest.mark.parametrize("name", MODULES)
def test_without_a_factor_it_does_not_run(name):
    module = MODULES[name][0](config("RMSNorm"))
    with pytest.raises(RuntimeError, match="never bound"):
        module(torch.randn(5, 2, H, device=DEVICE))


# The mutants: each is a silent failure that a plain way of scaling has with Transformer Engine.


def forward_only(module):
    """gamma scaled in the forward of the operation alone: the backward reads the raw one."""
    from megatron_cod.backends.te_norm import _DepthScaledOp

    plain = next(cls for cls in type(module).__mro__ if "op_backward" in vars(cls) and cls is not _DepthScaledOp)
    module.op_backward = lambda ctx, grad: plain.op_backward(module, ctx, grad)


def gradient_unscaled(module):
    """The backward's kernel sees s * gamma, but its gradient goes to gamma as it is."""
    module.scaled = tuple


def swapped_class(module):
    """Only the class of the fused-residual norm is ours; its chain is Megatron's."""
    from megatron.core.extensions.transformer_engine import TEFusedResidualRMSNorm

    module._make_fused_impl = lambda: TEFusedResidualRMSNorm._make_fused_impl(module)


def not_registered(module):
    """Transformer Engine's own fused backward takes the norm, and reads gamma by itself."""
    from megatron_cod.backends import te_norm

    chain = module._make_fused_impl()
    module._fused_impl = (chain,)
    from transformer_engine.pytorch.ops.fuser import OperationFuser

    kept = list(OperationFuser.backward_fusion_functions)
    OperationFuser.backward_fusion_functions.remove(te_norm._fuse_backward)
    chain(torch.randn(2, 2, H, device=DEVICE, requires_grad=True))  # the fuser keeps the chain it made
    OperationFuser.backward_fusion_functions[:] = kept


def first_linear_alone(module):
    """linear_fc1 is scaled, the op fuser's own norm is not."""
    from megatron.core.extensions.transformer_engine import TEFusedMLP

    module._make_fused_impl = lambda: TEFusedMLP._make_fused_impl(module)


MUTANTS = [
    ("norm", forward_only, "dx"),
    ("norm", gradient_unscaled, "d gamma"),
    ("fused residual", swapped_class, "output 0"),
    ("fused residual", not_registered, "dx"),
    ("op-fuser MLP", first_linear_alone, "output 0"),
]


@pytest.mark.parametrize(("name", "mutate", "wrong"), MUTANTS, ids=[mutant[1].__name__ for mutant in MUTANTS])
def test_a_silent_failure_is_caught(name, mutate, wrong):
    found = outcome(name, "RMSNorm", False, mutate)
    assert found[wrong] > 0.1, found


def with_main_grad(module: torch.nn.Module) -> torch.nn.Module:
    module.weight.main_grad = torch.ones_like(module.weight)
    module.weight.grad_added_to_main_grad = False
    module.is_first_microbatch = False  # in the first one the product would overwrite what is there
    return module


@pytest.mark.parametrize("feature", ["gradient_accumulation_fusion", "delay_wgrad_compute"])
def test_weight_gradients_that_come_another_way(feature):
    """Added to ``main_grad`` within the product, or computed after the backward: gamma's comes as always."""
    found = {}
    for on in (False, True):
        torch.manual_seed(5)
        cfg = config("RMSNorm")
        setattr(cfg, feature, on)  # Megatron's own check asks for expert parallelism with the second
        module = linear(cfg)
        module.depth_factor = FACTOR
        fused = on and feature == "gradient_accumulation_fusion"
        if fused:
            with_main_grad(module)
        x = torch.randn(7, 3, H, device=DEVICE, requires_grad=True)
        module(x)[0].square().sum().backward()
        if on and not fused:
            assert module.weight.grad is None
            module.backward_dw()
        weight = module.weight.main_grad - 1 if fused else module.weight.grad
        found[on] = (weight, module.layer_norm_weight.grad, x.grad)
    for plain, other in zip(found[False], found[True], strict=True):
        assert relative(other, plain.double().cpu()) <= 1e-6


def test_what_comes_in_between_micro_batches_sees_new_weights():
    """Nothing of gamma is kept from one forward to the next, and a backward uses what its forward used."""
    module = norm(config("RMSNorm"))
    module.depth_factor = 0.5
    x = torch.randn(5, 2, H, device=DEVICE)
    first = module(x)
    with torch.no_grad():
        module.weight.mul_(3.0)
    assert relative(module(x), 3 * first.detach().double().cpu()) <= 1e-6


def test_the_norm_of_the_grouped_mlp_is_scaled():
    """``--use-grouped-gemm-for-dense-mlp`` needs kernels of Blackwell: only its norm can be seen here."""
    module = op_fuser_mlp(config("RMSNorm"), "DepthScaledTEFusedMLPWithGroupedLinear")
    module.linear_fc1.depth_factor = FACTOR
    module._make_fused_impl()
    x = torch.randn(6, H, device=DEVICE, requires_grad=True)
    out = module._norm_seq[0](x)
    wide = x.detach().double().cpu()
    right = FACTOR * wide / (wide.pow(2).mean(-1, keepdim=True) + EPS).sqrt()
    assert relative(out, right) <= 1e-6
