"""What LNS launches more than Pre-LN on Transformer Engine's layers, counted a layer."""

import os
import re

import pytest

from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.oracle import Shape

LAYERS, HIDDEN, TOKENS = 3, 256, 512


def count(_rank: int, folder: str, flags: tuple[str, ...], schemes: tuple[str, ...]) -> dict[str, list[dict[str, int]]]:
    """Launches of one micro-batch, for each scheme: [forward, backward]."""
    import fakecuda
    import torch

    os.environ["FAKECUDA_GRIDS"] = "1"
    fakecuda.begin_rank("numerics", f"{folder}/emulation")
    from tests.distributed.engine import MODEL_FLAGS, Engine, shape_flags, start_megatron

    shape = Shape(layers=LAYERS, hidden=HIDDEN, ffn=512, heads=4, vocab=64)
    sizes = ["--micro-batch-size", "1", "--global-batch-size", "1", "--bf16"]
    args = start_megatron([*MODEL_FLAGS, *shape_flags(shape, TOKENS), *sizes, *flags])
    tokens = torch.zeros(1, TOKENS, dtype=torch.long, device="cuda")
    found = {}
    for scheme in schemes:
        model = Engine(args, Layout(), shape, scheme).model[0]
        for _ in range(2):  # the first pass allocates and looks kernels up
            fakecuda.reset()
            loss = model(tokens, tokens, None, labels=tokens).sum()
            forward = fakecuda.report()
            fakecuda.reset()
            loss.backward()
            backward = fakecuda.report()
        found[scheme] = [forward, backward]
    return found


def launches(report: dict[str, int]) -> dict[str, int]:
    return {name: number for name, number in report.items() if name.startswith(("kernel:", "gemm:", "memset"))}


def more(counted: dict[str, int], base: dict[str, int]) -> dict[str, int]:
    """Names whose number differs, with the difference."""
    names = launches(counted) | launches(base)
    return {name: gap for name in names if (gap := counted.get(name, 0) - base.get(name, 0))}


RUNS = {
    # flags -> how many more a layer, forward and backward: for each of two norms gamma times s, and its gradient
    "dense": ((), 2, 2),
    "op fuser": (("--use-transformer-engine-op-fuser",), 2, 2),
    "fp8": (("--fp8-format", "hybrid", "--fp8-recipe", "tensorwise"), 2, 2),
    "LayerNorm": (("--normalization", "LayerNorm"), 4, 4),  # beta as well
    "zero-centred": (("--apply-layernorm-1p",), 8, 6),  # to fp32, 1 + gamma, times s, back
}


def larger(extra: dict[str, int]) -> list[str]:
    """Launches on more than h elements: those of more than one block, or not elementwise."""
    return [name for name in extra if not re.search(r"elementwise_kernel.* blocks 1$", name)]


@pytest.mark.parametrize("name", RUNS)
def test_lns_adds_products_of_hidden_size_only(name, tmp_path):
    flags, *expected = RUNS[name]
    found = run_ranks(1, count, str(tmp_path), flags, ("pre_ln", "lns"))[0]
    for direction in (0, 1):
        base = found["pre_ln"][direction]
        assert sum(launches(base).values()) >= 10 * LAYERS, base  # the layers did run
        extra = more(found["lns"][direction], base)
        assert not larger(extra), extra
        assert sum(extra.values()) == LAYERS * expected[direction], extra


def count_naive(*arguments) -> dict[str, list[dict[str, int]]]:
    """The mutant: the activation is scaled, not gamma."""
    from megatron_cod.backends.te_linear import DepthScaledTELayerNormColumnParallelLinear as Scaled
    from megatron_cod.backends.te_linear import TELayerNormColumnParallelLinear as Plain

    Scaled.forward = lambda self, x: Plain.forward(self, x * self.bound_factor())
    return count(*arguments)


def test_detects_scaled_activation(tmp_path):
    found = run_ranks(1, count_naive, str(tmp_path), (), ("pre_ln", "lns"))[0]
    for direction in (0, 1):
        assert larger(more(found["lns"][direction], found["pre_ln"][direction]))
