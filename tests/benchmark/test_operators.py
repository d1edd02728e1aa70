"""What a scheme costs in operators: LNS adds products of h elements only, the yardstick passes over activations."""

from functools import partial

import pytest
import torch

from megatron_cod.benchmark.flops import flops_per_token, matrix_parameters
from megatron_cod.benchmark.operators import count_operators, difference, table
from megatron_cod.benchmark.report import rows_of
from megatron_cod.benchmark.timing import Lap
from megatron_cod.training.monitoring.throughput import peak_tflops
from tests.distributed.launch import run_ranks

LAYERS, HIDDEN = 4, 32
FLAGS = [
    *("--recipe", "recipes/debug.yaml", "--num-layers", str(LAYERS), "--hidden-size", str(HIDDEN), "--mock-data"),
    *("--ffn-hidden-size", "64", "--seq-length", "32"),
]


def counted(_rank: int, schemes: list[str], mutate=None) -> dict:
    from megatron_cod.benchmark import engine as engines

    if mutate is not None:
        mutate()
    args = engines.start_megatron(FLAGS, 1)
    batch = engines.random_batches(args, 1)[0][0]
    built = {scheme: engines.Engine(args, scheme) for scheme in schemes}
    return {name: count_operators(partial(engine.forward_backward, batch), HIDDEN) for name, engine in built.items()}


def activations_scaled() -> None:
    """The mutant: the norm's output is multiplied, not gamma."""
    from megatron_cod.backends import torch_norm

    torch_norm.DepthScaledTorchRMSNorm.forward = lambda self, x: (
        self.depth_factor * torch_norm._rms_norm(x, self, self.weight)
    )


def test_lns_adds_two_vector_products_a_norm_and_nothing_else():
    counts = run_ranks(1, counted, ["pre_ln", "lns", "lns_activation"])[0]
    # Two norms a layer, each with one product in the forward and one in the backward.
    assert difference(counts["lns"], counts["pre_ln"], LAYERS) == {("mul", "vector"): 4.0}
    assert difference(counts["lns_activation"], counts["pre_ln"], LAYERS) == {("mul", "activation"): 4.0}
    assert "+4.00 mul (vector)" in table(counts, "pre_ln", LAYERS)


@pytest.mark.slow
def test_scaled_activations_are_caught():
    counts = run_ranks(1, counted, ["pre_ln", "lns"], activations_scaled)[0]
    assert difference(counts["lns"], counts["pre_ln"], LAYERS)["mul", "activation"] == 4.0


def test_flops_are_six_for_a_weight_and_attention():
    assert flops_per_token(1000, layers=2, seq_length=8, attention_size=16) == 6000 + 12 * 2 * 8 * 16
    model = torch.nn.ModuleDict({"word_embeddings": torch.nn.Embedding(5, 4), "fc": torch.nn.Linear(4, 3)})
    assert matrix_parameters(model) == 12
    with pytest.raises(ValueError, match="mixtures of experts"):
        matrix_parameters(torch.nn.ModuleDict({"experts": torch.nn.Linear(2, 2)}))


def test_peak_flops_are_those_given():
    assert peak_tflops(123.0) == 123.0
    if not torch.cuda.is_available():
        assert peak_tflops(None) is None


def test_a_row_has_no_mfu_of_its_own():
    rows = rows_of({"a": [Lap(1.0, 0.5, 2.0)]}, "a", tokens=10)
    assert rows[0].mfu is None and rows[0].tokens_per_s == 10.0


@pytest.mark.gpu
@pytest.mark.gpu_time
def test_lns_is_as_fast_as_pre_ln_on_a_gpu():
    """130M-shaped blocks in bf16: time within 2% (the aim is 0.5%), the same peak memory, vector-sized kernels only."""
    from megatron_cod.benchmark.schemes import compare_schemes

    flags = ["--recipe", "recipes/llama_130m.yaml", "--bf16", "--micro-batch-size", "16", "--global-batch-size", "16"]
    report = compare_schemes(["lns"], flags, rounds=30, warmup=5, threads=4, clock="wall", profile=True)
    pre_ln, lns = report.rows
    assert lns.ratio.median <= 1.02
    assert abs(lns.peak_bytes - pre_ln.peak_bytes) <= 2**20
    assert "(activation)" not in report.appendix
