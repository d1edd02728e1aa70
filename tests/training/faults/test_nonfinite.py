"""NaN and infinity: the layer and the rank are named, the weights stay sound, a step is omitted where asked."""

import math
import re

import pytest

from megatron_cod.analysis.metrics import TRAIN_LOSS, read_metrics
from megatron_cod.checkpoint.events import read_events
from megatron_cod.training.faults.nonfinite import Sighting, before_step, leave_out, origin
from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import succeed
from tests.training.faults.mutants import BrokenLayer, BrokenLoss

SHORT = ["--eval-iters", "0", "--save-interval", "4"]
PP2 = ["--pipeline-model-parallel-size", "2"]
CP2 = ["--context-parallel-size", "2"]
TP2 = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
DISTRIBUTED = ["--use-distributed-optimizer"]

WHERE = {
    "output at PP 2": (2, PP2, BrokenLayer(3, (6,), rank=1), r"the output of layer 3 is not finite \(rank 1 on "),
    "output at DP 2": (2, [], BrokenLayer(2, (6,), rank=1), r"the output of layer 2 is not finite \(rank 1 on \S+\)"),
    "gradient at DP 2": (
        *(2, DISTRIBUTED, BrokenLayer(2, (6,), rank=1, backward=True)),
        r"the gradient behind layer 2 is not finite \(rank 1 on \S+\)",
    ),
    "gradient at PP 2": (
        *(2, PP2, BrokenLayer(4, (6,), rank=1, backward=True)),
        r"the gradient behind layer 4 is not finite \(rank 1 on",
    ),
    "loss at PP 2": (2, PP2, BrokenLoss(6, rank=1), r"the loss is not finite \(rank 1 on"),
    "virtual stages": (
        *(2, [*PP2, "--num-virtual-stages-per-pipeline-rank", "2"], BrokenLayer(3, (6,), rank=0)),
        r"the output of layer 3 is not finite \(rank 0 on",
    ),
    "output at CP 2": (2, CP2, BrokenLayer(3, (6,), rank=1), r"the output of layer 3 is not finite \(rank 1 on"),
    "gradient at CP 2": (
        *(2, CP2, BrokenLayer(3, (6,), rank=1, backward=True)),
        r"the gradient behind layer 3 is not finite \(rank 1 on",
    ),
    "TP 2 with recompute": (
        *(2, [*TP2, "--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1"]),
        *(BrokenLayer(3, (6,), rank=1), r"the output of layer 3 is not finite \(rank 1 on"),
    ),
}


@pytest.mark.parametrize(("world", "flags", "broken", "said"), WHERE.values(), ids=WHERE)
@pytest.mark.slow_except("gradient at PP 2")
def test_layer_and_rank_are_named_and_the_step_is_not_taken(tiny, tmp_path, world, flags, broken, said):
    ended = run_training_ranks(world, [*tiny, *SHORT, *flags, "--save", str(tmp_path)], before=broken)
    assert all(rank.code for rank in ended)
    errors = [line for rank in ended for line in rank.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith("error: step 6: "), errors
    assert re.search(said, errors[0]), errors
    assert "the weights are those of step 5" in errors[0]
    told = [one for one in read_events(tmp_path) if one["event"] == "not finite"]
    assert [one["step"] for one in told] == [6]
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "4"


def test_distinguishes_passing_faults_from_those_of_the_model(tiny, tmp_path):
    flags = [*tiny, *SHORT, "--save", str(tmp_path)]
    ended = run_training_ranks(2, flags, before=BrokenLayer(2, (6,), rank=1, once=True))
    errors = [line for rank in ended for line in rank.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.search(r"step 6: the loss is not finite \(rank 1 on \S+\)", errors[0]), errors
    assert "computed again, the same step was finite" in errors[0]


def test_a_step_skipped_changes_nothing_but_the_data(tiny, tmp_path):
    """Steps 3 and 6 are omitted: the weights are those of a run that never saw their data, and the run ends.

    With dropout: that a step is computed again to find the layer takes no random number from those that follow.
    """
    tiny = [*tiny, "--hidden-dropout", "0.1", "--attention-dropout", "0.1"]
    flags = [*tiny, *SHORT, *PP2, "--on-nonfinite", "skip", "--save", str(tmp_path / "skip")]
    ended = succeed_with(2, flags, BrokenLayer(3, (3, 6), rank=1))
    assert ended[0].output.count("skipped, 1 in a row of at most 10") == 2
    events = [(one["event"], one.get("step")) for one in read_events(tmp_path / "skip")]
    assert ("step skipped", 3) in events and ("step skipped", 6) in events and ("finished", 8) in events
    losses = read_metrics(tmp_path / "skip" / "metrics.jsonl").scalars[TRAIN_LOSS]
    assert [step for step, loss in losses.items() if not math.isfinite(loss)] == [3, 6]

    # The same with the optimizer's own step undone by hand, which no flag of ours is part of.
    undone = [*tiny, *SHORT, *PP2, "--on-nonfinite", "ignore", "--save", str(tmp_path / "undone")]
    succeed_with(2, undone, StepsUndone((3, 6)))
    others = read_metrics(tmp_path / "undone" / "metrics.jsonl").scalars[TRAIN_LOSS]
    assert {s: loss for s, loss in losses.items() if s not in (3, 6)} == {
        s: loss for s, loss in others.items() if s not in (3, 6)
    }


class StepsUndone:
    """At some steps Megatron's optimizer does nothing and says so."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        self.steps = steps

    def __call__(self) -> None:
        from megatron.core.optimizer.optimizer import ChainedOptimizer, FP32Optimizer

        from tests.training.faults.mutants import current_step

        for kind in (ChainedOptimizer, FP32Optimizer):
            kind.step = self.undone(kind.step, current_step)

    def undone(self, step, current_step):
        return lambda optimizer: (False, None, None) if current_step() in self.steps else step(optimizer)


def succeed_with(world, flags, before):
    ended = run_training_ranks(world, flags, before=before)
    assert [rank.code for rank in ended] == [0] * world, "\n".join(rank.output[-2500:] for rank in ended)
    return ended


def test_stops_after_too_many_skipped_steps(tiny, tmp_path):
    flags = [*tiny, *SHORT, "--on-nonfinite", "skip", "--most-skipped-steps", "2", "--save", str(tmp_path)]
    ended = run_training_ranks(1, flags, before=BrokenLayer(1, (3, 5, 6, 7), rank=0))
    assert ended[0].code
    assert "error: step 7: the output of layer 1" in ended[0].output
    assert "as were the 2 steps before; the weights are those of step 4" in ended[0].output


@pytest.mark.slow
def test_a_sound_run_is_not_touched(tiny, tmp_path):
    """To the bit the run without the guard."""
    for policy in ("stop", "ignore"):
        succeed(2, [*tiny, *SHORT, *PP2, "--on-nonfinite", policy, "--save", str(tmp_path / policy)])
    kept, without = (read_metrics(tmp_path / p / "metrics.jsonl").scalars[TRAIN_LOSS] for p in ("stop", "ignore"))
    assert kept == without and len(kept) == 8


def test_without_the_guard_the_weights_are_spoilt(tiny, tmp_path):
    """What the tests above guard against does happen."""
    flags = [*tiny, *SHORT, "--on-nonfinite", "ignore", "--save", str(tmp_path)]
    succeed_with(1, flags, BrokenLayer(2, (4,), rank=0))
    losses = read_metrics(tmp_path / "metrics.jsonl").scalars[TRAIN_LOSS]
    assert math.isfinite(losses[3]) and not any(math.isfinite(losses[step]) for step in range(5, 9))


def saw(rank, outputs=(), loss=False, gradients=(), parameters=()):
    return Sighting(rank, f"node{rank}", list(outputs), loss, list(gradients), list(parameters))


@pytest.mark.parametrize(
    ("sightings", "name", "ranks"),
    [
        ([saw(0, [3, 4], gradients=[2]), saw(1, [5], loss=True)], "the output of layer 3", [0]),
        ([saw(0), saw(1, loss=True, gradients=[4])], "the loss", [1]),
        (
            [saw(0, gradients=[2, 1]), saw(1, gradients=[4, 3]), saw(2, gradients=[4])],
            "the gradient behind layer 4",
            [1, 2],
        ),
        ([saw(0, parameters=["layer 2's mlp"]), saw(1)], "the gradient of layer 2's mlp", [0]),
        ([saw(0, [0]), saw(1, [1])], "the output of the embedding", [0]),
    ],
)
def test_the_origin_is_the_first_in_the_order_of_computation(sightings, name, ranks):
    found, of = origin(sightings)
    assert found == name and [one.rank for one in of] == ranks


class Optimizer:
    """As far as a step that is omitted goes."""

    def step(self) -> str:
        return "of the class"


@pytest.mark.parametrize("own", [None, lambda: "of this object"])
def test_skips_one_step_and_keeps_the_optimizers_own_skips(own):
    """``--optimizer-cuda-graph`` puts a step into the optimizer, and takes it out at the end of training."""
    optimizer = Optimizer()
    if own is not None:
        optimizer.step = own
    leave_out(optimizer)
    assert optimizer.step() == (False, None, None)
    assert vars(optimizer) == ({} if own is None else {"step": own})
    before_step(optimizer, lambda: False)
    assert optimizer.step() == (own or Optimizer().step)()
    assert vars(optimizer) == ({} if own is None else {"step": own})
