"""What LNS launches more than Pre-LN on Transformer Engine's layers, counted a layer."""

import os
import re

import pytest

from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.oracle import Shape

LAYERS, HIDDEN, TOKENS = 3, 256, 512
PRODUCT = re.compile(r"MulFunctor|mul_")


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


LAYERS_OF = {
    "dense": (),
    "zero-centred": ("--apply-layernorm-1p",),
    "op fuser": ("--use-transformer-engine-op-fuser",),
    "LayerNorm": ("--normalization", "LayerNorm"),
    "fp8": ("--fp8-format", "hybrid", "--fp8-recipe", "tensorwise"),
}


@pytest.mark.parametrize("name", LAYERS_OF)
def test_lns_adds_two_products_of_hidden_size_a_layer_and_direction(name, tmp_path):
    found = run_ranks(1, count, str(tmp_path), LAYERS_OF[name], ("pre_ln", "lns"))[0]
    for direction in (0, 1):
        base = found["pre_ln"][direction]
        assert sum(launches(base).values()) >= 10 * LAYERS, base  # the layers did run
        extra = more(found["lns"][direction], base)
        print(name, direction, sum(launches(base).values()), extra)
