"""``--compile-layers``: the same numbers as without, one graph for all layers, and hooks that are not dropped."""

from pathlib import Path

import pytest

from megatron_cod.analysis.metrics import read_metrics
from tests.distributed import scheme_runs
from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.oracle_runs import within_tolerance
from tests.distributed.runs import PP2, losses, succeed

COMPILED = ("--compile-layers",)
FULL = ("--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1")
LAYOUTS = {
    "one process": Layout(flags=COMPILED),
    "recompute": Layout(flags=(*COMPILED, *FULL)),
    "virtual stages": Layout(pp=2, vp=2, flags=COMPILED),
    "distributed optimizer": Layout(dp=2, flags=(*COMPILED, "--use-distributed-optimizer")),
}


def traced_only() -> None:
    """The layers become graphs, whose operators torch runs as they are: without a C++ compiler, and quick."""
    from functools import partial

    import megatron_cod.model
    from megatron_cod.backends.compiled_layers import compile_layers

    megatron_cod.model.compile_layers = partial(compile_layers, backend="eager")


def factor_of_the_first_layer() -> None:
    """The mutant: the one graph has the depth factor of the layer that was compiled, as a number."""
    from megatron_cod.schemes.depth import DepthScaled

    traced_only()
    DepthScaled.factor_in_graph = lambda self: 1.0


def _traced(rank: int, name: str, layout: Layout, mutate=traced_only):
    result = scheme_runs.worker(rank, name, layout, mutate)
    from torch._dynamo.utils import counters

    return result, counters["stats"]["unique_graphs"], dict(counters["graph_break"])


def _schemes() -> list[str]:
    from megatron_cod.schemes.table import get_scheme

    rows = scheme_runs.VARIANTS.items()
    return [name for name, (variant, _) in rows if get_scheme(variant.scheme).one_graph and not variant.warmup]


def _check(name: str, layout: Layout) -> None:
    results, graphs, breaks = zip(*run_ranks(layout.world, _traced, name, layout), strict=True)
    found = scheme_runs.against_the_oracle(list(results), name, layout)
    assert within_tolerance(found), found
    # With gradients and without (logits, recomputation), and Mix-LN has two kinds of layers; the model has 8.
    assert 1 <= max(graphs) <= 4 and breaks == ({},) * layout.world


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.slow_except("one process")
def test_layouts_agree_with_the_oracle_in_one_graph(layout):
    _check("lns", layout)


@pytest.mark.slow
@pytest.mark.parametrize("name", _schemes())
def test_each_scheme_is_one_graph(name):
    _check(name, LAYOUTS["one process"])


@pytest.mark.slow
@pytest.mark.parametrize("layout", [LAYOUTS["one process"], Layout(pp=2, flags=COMPILED)], ids=["one process", "pp2"])
def test_the_compiled_kernels_agree_with_the_oracle(layout):
    found = scheme_runs.differences("lns", layout)
    assert within_tolerance(found), found


@pytest.mark.slow
def test_a_factor_of_another_layer_is_caught():
    results = [one for one, *_ in run_ranks(1, _traced, "lns", LAYOUTS["one process"], factor_of_the_first_layer)]
    assert not within_tolerance(scheme_runs.against_the_oracle(results, "lns", LAYOUTS["one process"]))


def _hooked(_rank: int) -> tuple[int, int, list[float]]:
    import torch

    from megatron_cod.backends.compiled_layers import CompiledForward
    from megatron_cod.benchmark.engine import Engine, random_batches, start_megatron

    traced_only()
    sizes = ["--num-layers", "2", "--hidden-size", "32", "--ffn-hidden-size", "64", "--num-attention-heads", "2"]
    quiet = ["--mock-data", "--eval-iters", "0", "--logging-level", "40", "--compile-layers"]
    args = start_megatron(["--recipe", "debug", *sizes, *quiet], threads=1)
    engine = Engine(args, "lns")
    layers = engine.model[0].module.decoder.layers
    assert all(isinstance(layer.forward, CompiledForward) for layer in layers)
    batch = random_batches(args, 1)[0][0]

    def loss() -> float:
        return float(engine.model[0](batch["tokens"], batch["position_ids"], None, labels=batch["labels"]).mean())

    losses, calls = [loss()], []
    handle = layers[1].mlp.register_forward_hook(lambda *_: calls.append(torch.compiler.is_compiling()))
    losses.append(loss())
    seen = len(calls)
    handle.remove()
    losses.append(loss())
    return seen, len(calls), losses


def test_a_hook_inside_a_layer_is_called():
    ((seen, total, losses),) = run_ranks(1, _hooked)
    assert (seen, total) == (1, 1)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6) and losses[2] == losses[0]


def _monitored(folder: Path) -> dict[str, dict[int, float]]:
    scalars = read_metrics(folder / "metrics.jsonl").scalars
    return {name: values for name, values in scalars.items() if name.startswith("depth/")}


@pytest.mark.slow
def test_stopping_changes_nothing_to_the_bit(tiny, tmp_path):
    """Over two stages, with validation and checkpoints; losses and the depth monitor are as without the flag."""
    run = [*tiny, *PP2, "--depth-monitor-interval", "2", "--save-interval", "4"]
    whole, parts, plain = tmp_path / "whole", tmp_path / "parts", tmp_path / "plain"
    succeed(2, [*run, *COMPILED, "--save", str(whole)])
    succeed(2, [*run, *COMPILED, "--save", str(parts), "--exit-interval", "4"])
    assert max(losses(parts)[0]) == 4
    succeed(2, [*run, *COMPILED, "--save", str(parts), "--load", str(parts)])
    assert losses(parts) == losses(whole)
    succeed(2, [*run, "--save", str(plain)])
    (compiled, _), (expected, _) = losses(whole), losses(plain)
    assert compiled == pytest.approx(expected, abs=1e-5) and len(compiled) == 8
    monitored, without = _monitored(whole), _monitored(plain)
    assert monitored.keys() == without.keys() and len(monitored) > 4
    for name, values in monitored.items():
        assert values == pytest.approx(without[name], rel=1e-2, abs=1e-5), name
