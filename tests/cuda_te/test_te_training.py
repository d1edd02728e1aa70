"""What starts, trains and ends on Transformer Engine's layers, and what is refused in one line."""

import pytest

from megatron_cod.schemes.table import SCHEMES
from tests.cuda_te.runs import MLA, MOE, NORM_KERNELS, launched, train

FULL = ("--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1")
SELECTIVE = ("--recompute-granularity", "selective", "--recompute-modules", "core_attn", "layernorm", "mlp")
PP2 = ("--pipeline-model-parallel-size", "2", "--num-virtual-stages-per-pipeline-rank", "2")
TP2 = ("--tensor-model-parallel-size", "2", "--sequence-parallel")
TENSORWISE = ("--fp8-format", "hybrid", "--fp8-recipe", "tensorwise")
DELAYED = ("--fp8-format", "hybrid", "--fp8-recipe", "delayed")
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


def trained(world, folder, *flags):
    run = train(world, folder, *flags).succeeded()
    assert len(run.losses) == 4
    assert not [name for report in run.reports for name in report if name.startswith("!not computed")]
    assert launched(run, *NORM_KERNELS), "no norm of Transformer Engine was launched"
    return run


@pytest.mark.parametrize("name", CHOICES)
def test_starts_without_a_flag_of_the_machine(name, tmp_path):
    run = trained(1, tmp_path, *CHOICES[name])
    assert "transformer_engine" in next(line for line in run.console.splitlines() if line.startswith("backend: "))


@pytest.mark.parametrize("name", RUNS)
def test_trains(name, tmp_path):
    world, flags = RUNS[name]
    trained(world, tmp_path, *flags)
