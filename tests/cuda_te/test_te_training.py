"""What starts, trains and ends on Transformer Engine's layers, and what is refused in one line."""

import pytest
import torch

from megatron_cod.schemes.table import SCHEMES
from tests.cuda_te import cudnn_attention
from tests.cuda_te.runs import MLA, MOE, NORM_KERNELS, launched, train

FULL = ("--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1")
SELECTIVE = ("--recompute-granularity", "selective", "--recompute-modules", "core_attn", "layernorm", "mlp")
PP2 = ("--pipeline-model-parallel-size", "2", "--num-virtual-stages-per-pipeline-rank", "2")
TP2 = ("--tensor-model-parallel-size", "2", "--sequence-parallel")
TENSORWISE = ("--fp8-format", "hybrid", "--fp8-recipe", "tensorwise")
DELAYED = ("--fp8-format", "hybrid", "--fp8-recipe", "delayed")
EVALUATION = ("--eval-interval", "3", "--eval-iters", "1")
FUSER = ("--use-transformer-engine-op-fuser",)
DISTRIBUTED = ("--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather")

CHOICES = {
    "automatic": (),
    "backend": ("--backend", "transformer_engine"),
    "implementation": ("--transformer-impl", "transformer_engine"),
}
RUNS = {
    **{scheme: (1, ("--norm-scheme", scheme)) for scheme in SCHEMES if scheme != "lns"},
    "gamma-init": (1, ("--gamma-init",)),
    "branch output": (1, ("--lns-placement", "branch_output")),
    "residual warm-up": (1, ("--residual-warmup-steps", "4")),
    "zero-centred": (1, ("--apply-layernorm-1p",)),
    "LayerNorm": (1, ("--normalization", "LayerNorm")),
    "fp8 delayed": (1, DELAYED),
    "fp8 tensorwise": (1, TENSORWISE),
    "fp8 blockwise": (1, ("--fp8-format", "e4m3", "--fp8-recipe", "blockwise")),
    "fp8 tensor parallel": (2, (*TENSORWISE, *TP2)),
    "fp8 op fuser": (1, (*TENSORWISE, *FUSER)),
    "full recomputation": (1, FULL),
    "full recomputation fp8": (1, (*FULL, *DELAYED)),
    "selective recomputation": (1, SELECTIVE),
    "pipeline stages": (2, PP2),
    "tensor parallel": (2, TP2),
    "distributed optimizer": (2, DISTRIBUTED),
    "fused residual": (1, ("--fused-residual-rmsnorm",)),
    "op fuser": (1, FUSER),
    "latent attention": (1, MLA),
    "latent attention, fused": (1, (*MLA, "--mla-down-proj-fusion", "--fused-residual-rmsnorm")),
    "experts": (2, (*MOE, "--expert-model-parallel-size", "2")),
    "multi-token prediction": (1, ("--mtp-num-layers", "1")),
    "depth monitor": (1, ("--depth-monitor-interval", "1")),
}


def trained(world, folder, *flags, steps=4, before=None):
    run = train(world, folder, *flags, "--train-iters", str(steps), before=before).succeeded()
    assert len(run.losses) == steps
    assert not [name for report in run.reports for name in report if name.startswith("!not computed")]
    assert launched(run, *NORM_KERNELS), "no norm of Transformer Engine was launched"
    return run


@pytest.mark.parametrize("name", CHOICES)
def test_starts_without_a_flag_of_the_machine(name, tmp_path):
    run = trained(1, tmp_path, *CHOICES[name])
    assert "transformer_engine" in next(line for line in run.console.splitlines() if line.startswith("backend: "))


@pytest.mark.parametrize("name", RUNS)
def test_every_variant_trains(name, tmp_path):
    world, flags = RUNS[name]
    trained(world, tmp_path, *flags)


EXCHANGES = {"p2p": "nccl:Send", "all_gather": "nccl:AllGather", "a2a": "nccl:AllToAll"}


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_context_parallel_ranks_train(exchange, tmp_path):
    flags = ("--context-parallel-size", "2", "--cp-comm-type", exchange)
    run = trained(2, tmp_path, *flags, before=cudnn_attention.install)
    assert launched(run, EXCHANGES[exchange]) > 50, run.reports[0]


STEPS = 6
GRAPHS = {
    "whole layer": ("transformer_engine", 1, ()),
    "attention alone": ("transformer_engine", 1, ("--cuda-graph-modules", "attn")),
    "fp8": ("transformer_engine", 1, DELAYED),
    "pipeline stages": ("transformer_engine", 2, PP2),
    "multi-token prediction": ("transformer_engine", 1, ("--mtp-num-layers", "1")),
    "residual warm-up": ("transformer_engine", 1, ("--residual-warmup-steps", "4")),
    "NaN check, validation": ("transformer_engine", 1, ("--on-nonfinite", "stop", *EVALUATION)),
    "local": ("local", 1, ()),
    "full iteration": ("full_iteration", 1, ()),
}


def all_finite():
    """Values are void here, and often NaN: Megatron captures nothing while its first steps are omitted."""
    from megatron_cod.training.faults import nonfinite, nonfinite_search

    for module in (nonfinite, nonfinite_search):
        assert "zero_if_finite" in vars(module)
        vars(module)["zero_if_finite"] = lambda tensor: torch.zeros((), device=tensor.device)


@pytest.mark.parametrize("name", GRAPHS)
def test_trains_in_captured_graphs(name, tmp_path):
    """As many replays as layers, micro-batches and steps make, forward and backward."""
    kind, world, flags = GRAPHS[name]
    flags = ("--cuda-graph-impl", kind, "--te-rng-tracker", *flags)
    run = trained(world, tmp_path, *flags, steps=STEPS, before=all_finite)
    replays = launched(run, "cudaGraphLaunch")
    assert replays >= 2 if kind == "full_iteration" else replays >= 2 * 4 // world * 2 * 2, replays


def hooks_at_once():
    """The mutant: hooks of layers from the start, as without graphs."""
    from megatron_cod.training.monitoring import stream_variance

    def hook_layers(_, hooks):
        for layer, hook in hooks.items():
            layer.register_forward_hook(hook)

    stream_variance.hook_layers = hook_layers


def test_a_layer_with_a_hook_cannot_be_captured(tmp_path):
    run = train(1, tmp_path, "--cuda-graph-impl", "transformer_engine", before=hooks_at_once)
    assert run.code and "Modules must not have hooks registered" in run.console


REFUSED = {
    "mxfp8 on Hopper": (("--fp8-format", "e4m3", "--fp8-recipe", "mxfp8"), "--fp8-recipe mxfp8: Device compute"),
    "nvfp4 on Hopper": (("--fp4-format", "e2m1"), "--fp4-recipe nvfp4: Device compute"),
    "grouped dense": ((*FUSER, "--use-grouped-gemm-for-dense-mlp"), "--use-grouped-gemm-for-dense-mlp: Device compute"),
    "fp8 on torch": (("--backend", "torch", "--no-rope-fusion", *TENSORWISE), "--fp8-format needs Transformer Engine"),
    "fp8 width": ((*TENSORWISE, "--ffn-hidden-size", "264"), "--ffn-hidden-size 264 is none"),
    "delayed scaling, saved": (
        (*DELAYED, "--save", "checkpoints"),
        "--fp8-recipe delayed saves its scaling factors as a pickle",
    ),
    "flash-attn": (("--attention-backend", "flash"), "--attention-backend flash"),
    "op fuser, post_ln": ((*FUSER, "--norm-scheme", "post_ln"), "--use-transformer-engine-op-fuser needs"),
    "op fuser, experts": ((*FUSER, *MOE), "Fused GroupedMLP is not supported"),
    "overlap of products": ((*TP2, "--tp-comm-overlap"), "UB_SKIPMC=1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_in_one_line(name, tmp_path):
    flags, words = REFUSED[name]
    flags = [str(tmp_path / "c") if word == "checkpoints" else word for word in flags]
    run = train(2 if "--sequence-parallel" in flags else 1, tmp_path, *flags)
    assert run.code == 2 and not run.losses and words in run.error and "Traceback" not in run.console, run.console[
        -3000:
    ]
