"""hyper_connections and mhc: start, runs at every layout, monitors, analysis; wrong ones are caught."""

import math
import re

import pytest
import torch
from safetensors.torch import load_file

from megatron_cod.analysis.metrics import read_metrics
from megatron_cod.schemes import mhc
from megatron_cod.schemes.hyper_connections import HyperJoin
from megatron_cod.schemes.mhc import sinkhorn
from megatron_cod.training.monitoring.depth_monitor import depth_tag
from megatron_cod.training.start.loading import trace_megatron
from tests import oracle
from tests.distributed.engine import MODEL_FLAGS, Engine, shape_flags, start_megatron
from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.oracle_runs import SHAPE, VECTORS, init_weights, within_tolerance
from tests.distributed.runs import PP2, at_step_4, losses, refuse, succeed
from tests.distributed.scheme_runs import ONE, differences
from tests.programs import run_program

PP2_VPP2 = [*PP2, "--num-virtual-stages-per-pipeline-rank", "2"]
TP2_SP = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
VIRTUAL = Layout(pp=2, vp=2)
HYPER, MHC = ["--norm-scheme", "hyper_connections"], ["--norm-scheme", "mhc"]
STATIC = [*HYPER, "--hyper-connections-static"]


def start_worker(_rank: int, scheme: str, flags: list[str]) -> dict:
    """Logits and gradients of a model at its start values, the rest of it being the vectors'."""
    vectors = load_file(VECTORS)
    batch = ["--micro-batch-size", "1", "--global-batch-size", "2"]
    args = start_megatron([*MODEL_FLAGS, *shape_flags(SHAPE, 32), *batch, *ONE.all_flags(), *flags])
    engine = Engine(args, ONE, SHAPE, scheme)
    own = {name: tensor for name, _, tensor in engine.parts("data") if "streams" in name}
    engine.load({**init_weights(vectors), **own})
    return engine.forward_backward(vectors["tokens"][0], vectors["labels"][0])


@pytest.mark.slow_except("dynamic")
@pytest.mark.parametrize("flags", [[], ["--hyper-connections-static"]], ids=["dynamic", "static"])
def test_hyper_connections_start_as_pre_ln(flags):
    vectors = load_file(VECTORS)
    expected, _ = oracle.forward(init_weights(vectors), vectors["tokens"][0], "pre_ln", SHAPE)
    [found] = run_ranks(1, start_worker, "hyper_connections", flags)
    assert (found["logits"] - expected).abs().max() <= 1e-4  # the final norm's epsilon is of a stream n times as large


def test_all_of_mhc_learns_from_the_first_step():
    """But for the first mixing: of copies, whatever it is, it makes the same copies."""
    [found] = run_ranks(1, start_worker, "mhc", [])
    own = {name: gradient for name, _, gradient in found["grad"] if "streams" in name}
    assert len(own) == 3 * 2 * SHAPE.layers + 3
    for name, gradient in own.items():
        rows = gradient.reshape(gradient.shape[0], -1).abs().amax(1)
        first = name.startswith("model.layers.0.attn_")
        if first and gradient.shape[0] == 24:
            assert rows[8:].max() <= 1e-3 * rows[:8].max(), name
            rows = rows[:8]
        if first and name.endswith("gates"):
            rows = rows[:2]
        assert (rows > 1e-15).all(), (name, rows)  # rounding leaves 1e-19 at most in the mixing of copies


def swapped() -> None:
    """The mutant: the weights of reading and writing have changed places."""
    right = HyperJoin._weights

    def weights(self, streams, columns):
        whole = right(self, streams, slice(0, None))
        return torch.cat([whole[..., 1:2], whole[..., :1], whole[..., 2:]], dim=-1)[..., columns]

    HyperJoin._weights = weights


def untransposed() -> None:
    """The mutant: stream j gets row j of A, not its column."""
    from megatron_cod.schemes.mhc import MhcJoin

    right = MhcJoin.writing

    def writing(self, streams):
        mixing, weights = right(self, streams)
        return mixing.transpose(-1, -2), weights

    MhcJoin.writing = writing


def two_rounds() -> None:
    """The mutant: Sinkhorn stops early."""
    mhc.sinkhorn = lambda logits, _: sinkhorn(logits, 2)


def averaged_between_stages() -> None:
    """The mutant: a stage gets the mean of the streams, n times."""
    from megatron.core.transformer.transformer_block import TransformerBlock

    right = TransformerBlock.set_input_tensor

    def averaged(self, tensor):
        if tensor is not None:
            tensor = tensor.unflatten(1, (-1, 4)).mean(2).repeat_interleave(4, dim=1)
        right(self, tensor)

    TransformerBlock.set_input_tensor = averaged


MUTANTS = {
    "swapped": ("hyper_connections", ONE, swapped),
    "untransposed": ("mhc", ONE, untransposed),
    "two rounds": ("mhc", ONE, two_rounds),
    "averaged between stages": ("mhc", VIRTUAL, averaged_between_stages),
}


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.slow
def test_a_wrong_implementation_is_outside_the_tolerances(name):
    assert not within_tolerance(differences(*MUTANTS[name]))


RUNS = {"hyper_connections": HYPER, "static": [*STATIC, "--hyper-connections-streams", "2"], "mhc": MHC}


@pytest.fixture(scope="module", params=RUNS)
def whole(request, tmp_path_factory, tiny):
    """(flags, folder) of a run of 8 steps at PP 2 x VPP 2, saved after 4 and 8."""
    folder = tmp_path_factory.mktemp("streams")
    flags = RUNS[request.param]
    monitor = ["--depth-monitor-interval", "4", "--use-distributed-optimizer"]
    succeed(2, [*tiny, *flags, *monitor, *PP2_VPP2, "--save", str(folder), "--save-interval", "4"])
    return flags, folder


@pytest.mark.parametrize(
    ("world", "layout", "tolerance"),
    [(2, PP2_VPP2, 0.0), (1, [], 1e-5), (2, TP2_SP, 1e-5), (1, ["--recompute-granularity", "full"], 1e-5)],
    ids=["same", "one process", "tp2", "recompute"],
)
@pytest.mark.slow
def test_resumes_exactly_and_at_another_layout(whole, tiny, tmp_path, world, layout, tolerance):
    flags, folder = whole
    stopped = at_step_4(folder, tmp_path / "stopped")
    if "full" in layout:
        layout = [*layout, "--recompute-method", "uniform", "--recompute-num-layers", "1"]
    train, _ = losses(folder)
    more = ["--load", str(stopped), "--save", str(tmp_path / "run"), "--save-interval", "4"]
    succeed(world, [*tiny, *flags, "--use-distributed-optimizer", *layout, *more])
    found, _ = losses(tmp_path / "run")
    assert max(abs(found[step] - train[step]) for step in (5, 6, 7, 8)) <= tolerance


def depth_figures(folder, step: int) -> dict[str, float]:
    """Of the depth monitor at a step, by name and layer."""
    scalars = read_metrics(folder / "metrics.jsonl").scalars
    return {name: values[step] for name, values in scalars.items() if name.startswith("depth/")}


@pytest.mark.slow
def test_monitors_measure_every_block(whole):
    found = depth_figures(whole[1], 4)
    for name in ("variance before", "variance after", "gradient norm", "angular distance"):
        values = [found[depth_tag(name, layer)] for layer in (1, 2, 3, 4)]
        assert all(value > 0 for value in values), name


def followed(_rank: int, folder, mixes: bool) -> dict:
    """What the analysis sees of a trained model, and how far its mixing is from doubly stochastic."""
    traced = trace_megatron(folder, None, 16)
    seen: list[torch.Tensor] = []
    for block in traced.blocks if mixes else ():
        for join in (block.self_attn_bda, block.mlp_bda):
            writing = join.writing
            join.writing = lambda streams, writing=writing: (seen.append(writing(streams)[0]), writing(streams))[1]
    with torch.no_grad():
        trace = traced.trace(torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(4)))
        mixing = torch.stack(seen) if seen else torch.eye(4)
        again = [traced.block(trace, number, trace.streams[number - 1]) for number in (1, 2, 3, 4)]
        return {
            "shapes": {tuple(stream.shape) for stream in trace.streams},
            "blocks": max(float((a - b).abs().max()) for a, b in zip(again, trace.streams[1:], strict=True)),
            "head": float((traced.head(trace, trace.streams[-1]) - trace.logits).abs().max()),
            "sums": max(float((mixing.sum(axis) - 1).abs().max()) for axis in (-1, -2)),
        }


@pytest.mark.slow
def test_analysis_follows_the_streams(whole):
    """And mHC's trained mixing is doubly stochastic."""
    flags, folder = whole
    [found] = run_ranks(1, followed, folder, flags is MHC)
    n = 2 if flags is RUNS["static"] else 4
    assert found["shapes"] == {(2, 16, 32 * n)}
    assert max(found["blocks"], found["head"], found["sums"]) <= 1e-5, found


@pytest.mark.slow
def test_export_is_refused(whole, tmp_path):
    done = run_program("convert_hf.py", "export", "--checkpoint", whole[1], "--output", tmp_path / "hf")
    assert done.returncode == 2 and "several residual streams" in done.stderr and "lns" in done.stderr


@pytest.mark.slow
def test_monitors_see_what_they_see_of_pre_ln(tiny, tmp_path):
    """At the start all streams are Pre-LN's: each of their figures is."""
    found = {}
    for name, flags in (("pre_ln", ["--norm-scheme", "pre_ln", "--init-policy", "normal"]), ("streams", STATIC)):
        steps = ["--train-iters", "1", "--save", str(tmp_path / name), "--depth-monitor-interval", "1"]
        succeed(1, [*tiny, *flags, *steps])
        found[name] = depth_figures(tmp_path / name, 1)
    assert len(found["pre_ln"]) == 24 == len(found["streams"])
    for key, value in found["pre_ln"].items():
        if "gradient" not in key:  # a stream of n has a share of it
            assert math.isclose(found["streams"][key], value, rel_tol=1e-4), key


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            [*HYPER, "--hyper-connections-streams", "1"],
            "--hyper-connections-streams 1 must be at least 2 and at most 16",
        ),
        ([*MHC, "--mhc-streams", "17"], "--mhc-streams 17 must be at least 2 and at most 16"),
        ([*MHC, "--mhc-iterations", "0"], "--mhc-iterations 0 must be at least 1 and at most 100"),
        ([*MHC, "--mtp-num-layers", "1"], "--mtp-num-layers"),
        ([*HYPER, "--mhc-streams", "2"], "--mhc-streams does not go with --norm-scheme hyper_connections"),
    ],
)
def test_bad_input_is_one_line(tiny, flags, says):
    refuse(1, [*tiny, *flags, "--dry-run"], re.escape(says))


def test_another_number_of_streams_is_refused(whole, tiny):
    flags, folder = whole
    name = "hyper_connections_streams" if "hyper_connections" in flags else "mhc_streams"
    other = [*flags[:2], f"--{name.replace('_', '-')}", "3"]
    refuse(1, [*tiny, *other, "--load", str(folder), "--no-load-optim", "--dry-run"], rf"{name} \d .this run: 3.")
