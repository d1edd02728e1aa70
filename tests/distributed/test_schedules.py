"""Learning rate and batch size of every step of a real run, against the formulas; runs that stop and go on within them."""

import math
import shutil

import pytest
import yaml

from megatron_cod.analysis.metrics import TRAIN_LOSS, read_metrics
from tests.conftest import ROOT
from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import refuse, succeed

LR, MIN_LR = 1e-3, 1e-4
QUIET = ["--eval-iters", "0", "--log-interval", "1"]


@pytest.fixture(scope="session")
def short(tiny):
    """A tiny run without its length."""
    place = tiny.index("--train-iters")
    return [*tiny[:place], *tiny[place + 2 :]]


def series(folder, name: str) -> list[float]:
    """A metric of all steps, from the first on."""
    points = read_metrics(folder / "metrics.jsonl").scalars[name]
    assert list(points) == list(range(1, len(points) + 1))
    return list(points.values())


def run(folder, flags: list[str], world: int = 1, more: list[str] | None = None) -> list:
    save = ["--save", str(folder), "--save-interval", "100"]
    return succeed(world, [*flags, *QUIET, *save, *(more or [])])


def cosine(step: float, warmup: float, steps: float) -> float:
    if step <= warmup:
        return LR * step / warmup
    return MIN_LR + (LR - MIN_LR) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def wsd(step: float, warmup: float, steps: float, decay: float) -> float:
    """With the decay of recipes/debug_wsd.yaml, 1 - sqrt."""
    if step <= warmup:
        return LR * step / warmup
    return MIN_LR + (LR - MIN_LR) * (1 - math.sqrt(max(0.0, step - steps + decay) / decay))


@pytest.mark.slow
def test_recipe_sets_cosine(tiny, tmp_path):
    """A progress line has the rate of the step to come: Megatron's scheduler steps before it is logged."""
    run(tmp_path, [*tiny, "--train-iters", "12", "--lr-warmup-fraction", "0.25"])
    expected = [cosine(step, 3, 12) for step in range(1, 13)]
    assert series(tmp_path, "learning-rate") == pytest.approx(expected, rel=1e-6)


@pytest.fixture(scope="module")
def stable(tmp_path_factory, short):
    """recipes/debug_wsd.yaml for 16 steps of 128 tokens: 3 of warm-up, 4 of decay."""
    folder = tmp_path_factory.mktemp("stable")
    flags = [*short, "--recipe", str(ROOT / "recipes" / "debug_wsd.yaml")]
    flags += ["--train-tokens", "2K", "--lr-warmup-tokens", "384", "--lr-wsd-decay-tokens", "512"]
    ended = run(folder, flags, more=["--save-interval", "8"])
    return flags, folder, ended


@pytest.mark.slow
def test_wsd_by_recipe_in_tokens(stable):
    _, folder, ended = stable
    assert "16 steps, 64 samples, 2,048 tokens" in ended[0].output and "step 16/16 | loss" in ended[0].output
    expected = [wsd(step, 3, 16, 4) for step in range(1, 17)]
    assert series(folder, "learning-rate") == pytest.approx(expected, rel=1e-6)
    resolved = yaml.safe_load((folder / "resolved_args.yaml").read_text())
    assert resolved["train-tokens"] == 2000 and "train-samples" not in resolved


@pytest.mark.slow
def test_a_stable_checkpoint_is_trained_on_for_longer(stable, tmp_path):
    """What WSD is for: from before the decay on, to a later end. Megatron asks for a word on it."""
    flags, folder, _ = stable
    longer = [*flags, "--load", str(folder), "--ckpt-step", "8", "--train-tokens", "2304", "--save", str(tmp_path)]
    refuse(1, [*longer, *QUIET, "--save-interval", "9"], r"--train-iters .*--override-opt_param-scheduler")
    succeed(1, [*longer, *QUIET, "--save-interval", "9", "--override-opt_param-scheduler"])
    found = read_metrics(tmp_path / "metrics.jsonl").scalars["learning-rate"]
    assert list(found) == list(range(9, 19))
    assert list(found.values()) == pytest.approx([wsd(step, 3, 18, 4) for step in range(9, 19)], rel=1e-6)


@pytest.mark.slow
def test_accumulated_gradients_equal_one_batch(short, tmp_path):
    """From one checkpoint, batches in micro-batches of 1, of 4, and over two replicas: the same losses."""
    flags = [*short, "--train-iters", "4"]
    run(tmp_path / "base", [*flags, "--exit-interval", "1"])
    found = []
    for name, world, micro in (("one", 1, "1"), ("four", 1, "4"), ("two", 2, "2")):
        run(tmp_path / name, [*flags, "--micro-batch-size", micro, "--load", str(tmp_path / "base")], world)
        scalars = read_metrics(tmp_path / name / "metrics.jsonl").scalars
        assert list(scalars[TRAIN_LOSS]) == [2, 3, 4] and set(scalars["batch-size"].values()) == {4}
        found.append(list(scalars[TRAIN_LOSS].values()))
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-6)


RAMP = ["--rampup-batch-size", "2", "2", "16", "--global-batch-size", "8", "--micro-batch-size", "1"]
RAMP += ["--train-samples", "58", "--lr-warmup-fraction", "0.2"]
SIZES = [2, 2, 2, 4, 4, 6, 8, 8, 8, 8, 8]
"""Stages from samples 0, 6, 11, 16 on, as thirds of 16."""


@pytest.fixture(scope="module")
def ramped(tmp_path_factory, short):
    """The whole run, over two replicas."""
    folder = tmp_path_factory.mktemp("ramped")
    return folder, run(folder, [*short, *RAMP], 2, ["--keep-last-checkpoints", "1"])


def test_batch_sizes_grow(ramped):
    folder, ended = ramped
    sizes = series(folder, "batch-size")
    assert sizes == SIZES and sum(sizes[:-1]) < 58 < sum(sizes)
    consumed = [sum(SIZES[:step]) for step in range(1, 12)]
    samples = sum(SIZES)
    expected = [cosine(done, 0.2 * samples, samples) for done in consumed]
    assert series(folder, "learning-rate") == pytest.approx(expected, rel=1e-6)
    assert [
        round(seen / 32) for seen in read_metrics(folder / "metrics.jsonl").scalars["tokens seen"].values()
    ] == consumed[1:]
    assert f"11 steps, {samples} samples" in ended[0].output
    assert "step 11/11 | loss" in ended[0].output and "ETA 0:00" in ended[0].output.split("step 11/11")[1]
    assert [path.name for path in folder.glob("iter_*")] == ["iter_0000011"]


def stop_at(step: int, short: list[str], folder) -> None:
    run(folder, [*short, *RAMP], 2, ["--exit-interval", str(step)])
    assert len(series(folder, TRAIN_LOSS)) == step


def goes_on_as(whole, short: list[str], folder) -> None:
    run(folder, [*short, *RAMP], 2, ["--load", str(folder)])
    for name in (TRAIN_LOSS, "learning-rate", "batch-size"):
        assert series(folder, name) == series(whole, name)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, short):
    """After step 3; the batch has just grown."""
    folder = tmp_path_factory.mktemp("stopped")
    stop_at(3, short, folder)
    return folder


@pytest.mark.slow
def test_a_stop_within_the_ramp_changes_nothing(ramped, stopped, short, tmp_path):
    """To the bit."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    goes_on_as(ramped[0], short, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [4, 6, 8])
def test_another_stop_changes_nothing_either(ramped, short, tmp_path, stop):
    stop_at(stop, short, tmp_path)
    goes_on_as(ramped[0], short, tmp_path)


@pytest.mark.slow
def test_the_place_in_the_ramp_is_kept_at_another_layout(ramped, stopped, short, tmp_path):
    """Stopped over two replicas, resumed in two stages."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    run(tmp_path, [*short, *RAMP], 2, ["--load", str(tmp_path), "--pipeline-model-parallel-size", "2"])
    assert series(tmp_path, "batch-size") == SIZES
    theirs = series(ramped[0], TRAIN_LOSS)
    assert max(abs(a - b) for a, b in zip(series(tmp_path, TRAIN_LOSS), theirs, strict=True)) <= 1e-5


@pytest.mark.slow
def test_train_samples_alone_set_the_length(short, tmp_path):
    """As Megatron has it: steps that are not whole are omitted."""
    flags = [*short, "--train-samples", "23"]
    ended = run(tmp_path, flags)
    assert "step 5/5 | loss" in ended[0].output and series(tmp_path, "batch-size") == [4] * 5
    assert '"train_iters": 5' in (tmp_path / "events.jsonl").read_text()


PHASES = ["--train-samples", "32", "--lr-warmup-fraction", "0.25", "--max-position-embeddings", "64"]


@pytest.mark.slow
def test_two_phases_of_other_lengths(short, tmp_path):
    """32 tokens a sample up to step 4, then 64: weights, optimizer and schedule go on, the data begins anew."""
    first = [*short, *PHASES, "--phase-transition-iterations", "4"]
    ended = run(tmp_path, first)
    assert ended[0].code == 0 and len(series(tmp_path, TRAIN_LOSS)) == 4
    second = [*short, *PHASES, "--seq-length", "64", "--load", str(tmp_path)]
    refuse(
        1,
        [*second, "--save", str(tmp_path), "--save-interval", "9"],
        r"was trained at --seq-length 32, this run has 64: .* give --phase-transition-iterations 4",
    )
    run(tmp_path, [*second, "--phase-transition-iterations", "4"])
    found = read_metrics(tmp_path / "metrics.jsonl").scalars
    assert list(found["learning-rate"].values()) == pytest.approx(
        [cosine(step, 2, 8) for step in range(1, 9)], rel=1e-6
    )
    # The first batch of the phase is the first of its own data: that of a run that begins there with the weights alone.
    fresh = ["--finetune", "--train-samples", "16", "--metrics-file", str(tmp_path / "fresh" / "metrics.jsonl")]
    flags = [*second, *fresh, "--ckpt-step", "4", *QUIET]
    assert run_training_ranks(1, flags)[0].code == 0
    assert read_metrics(tmp_path / "fresh" / "metrics.jsonl").scalars[TRAIN_LOSS][1] == found[TRAIN_LOSS][5]
