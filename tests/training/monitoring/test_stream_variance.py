"""The variance per global layer, gathered over TP x PP x DP, against the oracle's residual stream."""

import pytest
from safetensors.torch import load_file

from tests.distributed.engine import MODEL_FLAGS, Engine, shape_flags, start_megatron
from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.oracle_runs import SHAPE, VECTORS, init_weights

LAYOUTS = [Layout(), Layout(pp=2, vp=2), Layout(tp=2, flags=("--sequence-parallel",)), Layout(pp=2, dp=2)]


def measure(_rank: int, layout: Layout) -> dict:
    import torch

    from megatron_cod.training.monitoring.parameter_count import count_parameters
    from megatron_cod.training.monitoring.stream_variance import StreamVariance

    vectors = load_file(VECTORS)
    batch = ["--micro-batch-size", "1", "--global-batch-size", "2"]
    args = start_megatron([*MODEL_FLAGS, *shape_flags(SHAPE, 32), *batch, *layout.all_flags()])
    engine = Engine(args, layout, SHAPE, "lns")
    engine.load(init_weights(vectors))
    variance = StreamVariance()
    variance.model_built(engine.model)
    engine.forward_backward(vectors["tokens"][0], vectors["labels"][0])  # training: must not count
    for chunk in engine.model:
        chunk.eval()
    with torch.no_grad():
        engine.forward_backward(vectors["tokens"][0], vectors["labels"][0], forward_only=True)
    found = variance.collect(engine.model)
    return {"variance": found, "again": variance.collect(engine.model), "parameters": count_parameters(engine.model)}


@pytest.mark.slow_except("one", "pp2 vp2")
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_variance_and_parameter_count(layout):
    hidden = load_file(VECTORS)["mha.lns.hidden"]  # [9, b, s, h]
    expected = hidden[1:].var(dim=-1, unbiased=False).mean(dim=(1, 2)).tolist()
    parameters = sum(tensor.numel() for tensor in init_weights(load_file(VECTORS)).values())
    for found in run_ranks(layout.world, measure, layout):
        assert found["variance"] == pytest.approx(expected, rel=1e-4)
        assert found["again"] == [0.0] * SHAPE.layers
        assert found["parameters"] == parameters
