"""The plain-PyTorch oracle against the float64 vectors of a third implementation, and wrong oracles against both."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import oracle

VECTORS = Path(__file__).parent / "vectors" / "lns_mha.safetensors"
SHAPE = oracle.Shape()


@pytest.fixture(scope="module")
def vectors():
    return load_file(VECTORS)


@pytest.fixture(scope="module")
def weights(vectors):
    return {key.removeprefix("mha.init."): value for key, value in vectors.items() if key.startswith("mha.init.")}


@pytest.mark.parametrize("scheme", ["pre_ln", "lns"])
def test_oracle_agrees_with_the_vectors(vectors, weights, scheme):
    found = oracle.run(weights, vectors["tokens"], vectors["labels"], scheme, SHAPE)
    prefix = f"mha.{scheme}."
    assert (found["logits"] - vectors[prefix + "logits"]).abs().max() <= 1e-5
    assert (found["hidden"] - vectors[prefix + "hidden"]).abs().max() <= 1e-5
    assert abs(found["loss"] - vectors[prefix + "loss"]) <= 1e-5
    for name, grad in found["grad"].items():
        assert (grad - vectors[prefix + "grad." + name]).abs().max() <= 2e-6, name
    moved = torch.cat([(found["params"][n] - vectors[prefix + "adamw3." + n]).abs().flatten() for n in weights])
    assert moved.max() <= 2e-3
    assert (moved > 1e-4).sum() <= 20
    assert max(abs(a - float(b)) for a, b in zip(found["losses"], vectors[prefix + "losses"], strict=True)) <= 1e-5


WRONG = {
    "no scaling": lambda s, block: 1.0,
    "off by one": lambda s, block: 1 / math.sqrt(block + 1),
    "twice the depth": lambda s, block: 1 / math.sqrt(2 * block),
    "stage-local": lambda s, block: 1 / math.sqrt((block - 1) % 4 + 1),
    "not a root": lambda s, block: 1 / block,
}


@pytest.mark.parametrize("factor", WRONG.values(), ids=WRONG)
def test_a_wrong_factor_is_far_from_the_vectors(vectors, weights, factor):
    logits, _ = oracle.forward(weights, vectors["tokens"][0], "lns", SHAPE, factor)
    assert (logits - vectors["mha.lns.logits"]).abs().max() > 0.1
