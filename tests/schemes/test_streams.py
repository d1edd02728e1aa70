"""A scheme with two residual streams (``outside/two_streams.py``): over pipeline stages, and in the rehearsal."""

from argparse import Namespace
from dataclasses import replace
from functools import partial

import pytest
from safetensors.torch import load_file

from megatron_cod.errors import UserError
from megatron_cod.estimate.activations import layer_parts
from megatron_cod.model import _fit_transfers_to_streams
from megatron_cod.rehearsal.launch import read_launch
from megatron_cod.schemes.table import SCHEMES, import_modules
from tests import oracle
from tests.distributed.engine import MODEL_FLAGS, Engine, shape_flags, start_megatron
from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.oracle_runs import SHAPE, SP, VECTORS, full_logits, init_weights
from tests.distributed.runs import succeed
from tests.rehearsal.jobs import SMALL

MODULE = "tests.schemes.outside.two_streams"
NAME = "two_streams"


def worker(_rank: int, layout: Layout, told: bool = True) -> dict:
    import_modules([MODULE])
    if not told:
        SCHEMES[NAME] = replace(SCHEMES[NAME], streams=lambda options: 1)
    vectors = load_file(VECTORS)
    batch = ["--micro-batch-size", "1", "--global-batch-size", "2"]
    args = start_megatron([*MODEL_FLAGS, *shape_flags(SHAPE, 32), *batch, *layout.all_flags()])
    engine = Engine(args, layout, SHAPE, NAME)
    engine.load(init_weights(vectors))
    return engine.forward_backward(vectors["tokens"][0], vectors["labels"][0], forward_only=True)


LAYOUTS = [Layout(), Layout(pp=2), Layout(pp=2, vp=2), Layout(tp=2, pp=2, flags=SP)]


@pytest.mark.slow_except(
    "Layout(tp=1, pp=2, vp=1, dp=1, flags=(), counts=(), cp=1)",
    "Layout(tp=1, pp=2, vp=2, dp=1, flags=(), counts=(), cp=1)",
)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_streams_cross_pipeline_stages(layout):
    vectors = load_file(VECTORS)
    expected, _ = oracle.forward(init_weights(vectors), vectors["tokens"][0], "pre_ln", SHAPE)
    found = full_logits(run_ranks(layout.world, worker, layout), layout)
    assert (found - expected).abs().max() <= 1e-5


def test_a_scheme_that_hides_its_streams_fails():
    """The mutant: stages expect one stream."""
    with pytest.raises(Exception):  # noqa: B017  # whatever the transport says
        run_ranks(2, partial(worker, told=False), Layout(pp=2))


@pytest.mark.slow
def test_trains_saves_and_resumes(tmp_path, tiny):
    flags = [*tiny, "--import", MODULE, "--norm-scheme", NAME, "--pipeline-model-parallel-size", "2"]
    flags += ["--num-virtual-stages-per-pipeline-rank", "2", "--save", str(tmp_path / "run"), "--save-interval", "4"]
    succeed(2, [*flags, "--exit-interval", "4"])
    succeed(2, [*flags, "--load", str(tmp_path / "run")])


def test_captured_iterations_are_refused_over_stages():
    transformer = Namespace(pipeline_model_parallel_size=2, cuda_graph_impl="full_iteration")
    with pytest.raises(UserError, match="full_iteration does not support several residual streams"):
        _fit_transfers_to_streams(transformer)


def test_the_estimate_counts_streams():
    import_modules([MODULE])

    def parts(scheme: str) -> dict[str, float]:
        args = read_launch([*SMALL, "--norm-scheme", scheme], 1).args
        return layer_parts(args, mixture=False)

    one, two = parts("pre_ln"), parts(NAME)
    assert two.pop("input") == 2 * one.pop("input") > 0
    assert two.pop("residual") == 2 * one.pop("residual") > 0
    assert two.pop("streams") > one.pop("streams") == 0
    assert one == two
