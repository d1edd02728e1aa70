"""The depth monitor in training: against a direct computation, the same at every layout, and silent when off."""

import json
import math

import pytest
import torch

from megatron_cod.training.monitoring.depth_monitor import (
    COLUMNS,
    DepthMonitor,
    _add_gradient,
    _sums,
    depth_tag,
    first_broken,
    means,
)
from tests.distributed.architectures import MOE
from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import at_step_4

SP = "--sequence-parallel"
FULL = ["--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1"]


def test_sums_equal_the_definitions():
    before, after = torch.randn(5, 2, 16), torch.randn(5, 2, 16)
    gradient = torch.randn(5, 2, 16)
    table = torch.zeros(1, len(COLUMNS) + 3, dtype=torch.float64)
    table[0] += _sums(before, after)
    _add_gradient(table[0], gradient)
    found = {name: column[0] for name, column in means(table, 3).items()}
    assert found["variance before"] == pytest.approx(float(before.var(-1, unbiased=False).mean()), rel=1e-5)
    assert found["variance after"] == pytest.approx(float(after.var(-1, unbiased=False).mean()), rel=1e-5)
    ratio = ((after - before).norm(dim=-1) / before.norm(dim=-1)).mean()
    assert found["branch over stream"] == pytest.approx(float(ratio), rel=1e-5)
    angle = torch.acos(torch.nn.functional.cosine_similarity(before, after, dim=-1)).mean() / math.pi
    assert found["angular distance"] == pytest.approx(float(angle), rel=1e-5)
    assert found["gradient norm"] == pytest.approx(3 * float(gradient.norm(dim=-1).square().mean().sqrt()), rel=1e-5)


def test_names_layer_of_nonfinite_value():
    fine = {"variance after": [1.0, 2.0, 3.0], "gradient norm": [1.0, 1.0, 1.0]}
    assert first_broken(fine) is None
    assert first_broken({**fine, "variance after": [1.0, math.nan, math.inf]}) == "those of layer 2's output"
    assert first_broken({**fine, "gradient norm": [math.nan, math.inf, 1.0]}) == "the gradients behind layer 2"


def test_an_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="--depth-monitor-interval 0 must be at least 1"):
        DepthMonitor(0, None, lambda *_: None, print)


def monitored(tiny, folder, world, *flags, interval=4):
    """Scalars of a run up to step 8: name -> {step: value}."""
    save = ["--save", str(folder), "--save-interval", "4", "--log-interval", "1"]
    ended = run_training_ranks(world, [*tiny, *flags, *save, "--depth-monitor-interval", str(interval)])
    assert [rank.code for rank in ended] == [0] * world, ended[0].output[-3000:]
    found: dict[str, dict[int, float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        found.setdefault(record["name"], {})[record["step"]] = record["value"]
    return {name: values for name, values in found.items() if name.startswith("depth/")}


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """One process: what it measured, and its checkpoint of step 4."""
    folder = tmp_path_factory.mktemp("one")
    found = monitored(tiny, folder, 1, interval=1)
    return found, at_step_4(folder, tmp_path_factory.mktemp("stopped") / "s")


@pytest.fixture
def one(whole):
    return whole[0]


@pytest.mark.slow
def test_every_layer_and_metric_is_there(one):
    names = [
        "variance before",
        "variance after",
        "branch over stream",
        "angular distance",
        "gradient norm",
        "gamma mean",
    ]
    assert set(one) == {depth_tag(name, number) for name in names for number in range(1, 5)}
    assert all(set(values) == set(range(1, 9)) for values in one.values())
    for number in range(1, 4):  # the stream after a block is the stream before the next
        assert one[depth_tag("variance after", number)] == one[depth_tag("variance before", number + 1)]
    assert all(one[depth_tag("gamma mean", number)][1] == 1.0 for number in range(1, 5))


PP2 = ["--pipeline-model-parallel-size", "2"]
LAYOUTS = {
    "pp2": (2, PP2),
    "vp2": (2, [*PP2, "--num-virtual-stages-per-pipeline-rank", "2"]),
    "tp2": (2, ["--tensor-model-parallel-size", "2"]),
    "tp2 sp": (2, ["--tensor-model-parallel-size", "2", SP]),
    "dp2": (2, []),
    "recompute": (1, FULL),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.slow
def test_a_layout_gives_the_numbers_of_one_process(tiny, whole, tmp_path, name):
    """From the same checkpoint, the first step."""
    world, flags = LAYOUTS[name]
    one, stopped = whole
    found = monitored(tiny, tmp_path, world, "--load", str(stopped), *flags, interval=5)
    assert found.keys() == one.keys()
    for key, values in found.items():
        assert values[5] == pytest.approx(one[key][5], rel=1e-4), key


@pytest.mark.slow
def test_experts_have_the_metrics_of_one_process(tiny, tmp_path):
    found = monitored(tiny, tmp_path, 1, *MOE)
    assert all(set(values) == {4, 8} for values in found.values())
    assert all(0 < found[depth_tag("gradient norm", number)][8] < 1e3 for number in range(1, 5))


@pytest.mark.slow
def test_fully_sharded_gammas_are_gathered(tiny, tmp_path):
    """Each rank holds a piece of every gamma there; its checkpoints are another matter, so none is written."""
    file = tmp_path / "metrics.jsonl"
    flags = [*tiny, "--micro-batch-size", "1", "--use-torch-fsdp2", "--metrics-file", str(file)]
    ended = run_training_ranks(2, [*flags, "--depth-monitor-interval", "4"])
    assert [rank.code for rank in ended] == [0, 0], ended[0].output[-3000:]
    records = [json.loads(line) for line in file.read_text().splitlines()]
    gammas = [one["value"] for one in records if one["name"].startswith("depth/gamma mean") and one["step"] == 4]
    assert len(gammas) == 4 and all(0.9 < gamma < 1.1 for gamma in gammas)


def counted_in_the_stage() -> None:
    """The mutant: layers are numbered within their stage."""
    from megatron_cod.training.monitoring import depth_monitor

    right = depth_monitor.DepthMonitor._hook

    def hook(self, layer, args, kwargs, output):
        number = layer.layer_number
        layer.layer_number = (number - 1) % 2 + 1
        try:
            right(self, layer, args, kwargs, output)
        finally:
            layer.layer_number = number

    depth_monitor.DepthMonitor._hook = hook


def test_layers_counted_in_the_stage_are_caught(tiny, tmp_path):
    flags = [*tiny, "--pipeline-model-parallel-size", "2", "--save", str(tmp_path), "--save-interval", "100"]
    run_training_ranks(2, [*flags, "--depth-monitor-interval", "4"], before=counted_in_the_stage)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    values = {record["name"]: record["value"] for record in records if record["name"].startswith("depth/")}
    assert not math.isfinite(values[depth_tag("variance after", 4)])


def nan_in_layer_3() -> None:
    """Layer 3's MLP gives NaN from the first step on."""
    from megatron_cod.schemes import design

    right = design.BlockDesign.bind

    def bind(self, layer):
        right(self, layer)
        if layer.layer_number == 3:
            layer.mlp.linear_fc2.weight.fill_(math.nan)

    design.BlockDesign.bind = bind


def test_the_layer_that_makes_nan_is_named(tiny, tmp_path):
    flags = [*tiny, "--depth-monitor-interval", "1", "--no-check-for-nan-in-loss-and-grad", "--train-iters", "2"]
    ended = run_training_ranks(1, [*flags, "--rerun-mode", "disabled"], before=nan_in_layer_3)
    assert "step 1: the first values that are not finite are those of layer 3's output" in ended[0].output
