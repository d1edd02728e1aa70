"""Save at TP 2 x PP 2, go on at another layout: the unbroken run's losses, and that the optimizer state is part of it."""

from functools import cache
from pathlib import Path

import pytest

from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import PP2, TOLERANCE, at_step_4, losses, refuse, succeed

OPTIMIZER = "--use-distributed-optimizer"
TP2_PP2 = ["--tensor-model-parallel-size", "2", *PP2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny):
    """Flags of the optimizer -> losses of the unbroken run, and the directory as it was after step 4."""

    @cache
    def run(*optimizer: str):
        whole = tmp_path_factory.mktemp("whole")
        succeed(4, [*tiny, *TP2_PP2, *optimizer, "--save", str(whole), "--save-interval", "4"])
        return losses(whole), at_step_4(whole, tmp_path_factory.mktemp("stopped") / "s")

    return run


def go_on(saved, tiny, folder: Path, world: int, layout: list[str], optimizer: list[str], *more: str) -> float:
    """Steps 5 to 8 at another layout; the largest difference of a loss to the unbroken run."""
    (expected, expected_valid), stopped = saved(*optimizer)
    flags = [*tiny, *layout, *optimizer, *more, "--load", str(stopped), "--save", str(folder), "--save-interval", "4"]
    succeed(world, flags)
    train, valid = losses(folder)
    assert set(train) == {5, 6, 7, 8}
    return max(*(abs(train[step] - expected[step]) for step in train), abs(valid[8] - expected_valid[8]))


LAYOUTS = {
    "pp4": (4, ["--pipeline-model-parallel-size", "4"]),
    "tp1": (1, []),
    "pp2 vp2": (2, [*PP2, "--num-virtual-stages-per-pipeline-rank", "2"]),
    "dp4": (4, ["--micro-batch-size", "1"]),
}
CASES = [(name, optimizer) for name in LAYOUTS for optimizer in ([], [OPTIMIZER]) if name != "dp4" or optimizer]


@pytest.mark.parametrize(("name", "optimizer"), CASES, ids=[f"{n}{' distributed' if o else ''}" for n, o in CASES])
@pytest.mark.slow_except("pp2 vp2 distributed")
def test_resumes_at_another_layout(saved, tiny, tmp_path, record_property, name, optimizer):
    difference = go_on(saved, tiny, tmp_path / "other", *LAYOUTS[name], optimizer)
    record_property("difference", difference)
    assert difference <= TOLERANCE


@pytest.mark.parametrize("optimizer", [[], [OPTIMIZER]], ids=["plain", "distributed"])
@pytest.mark.slow
def test_detects_missing_optimizer_state(saved, tiny, tmp_path, optimizer):
    """The comparison above can fail: weights alone give other losses from the second step on."""
    difference = go_on(saved, tiny, tmp_path / "other", 1, [], optimizer, "--no-load-optim")
    assert difference > 100 * TOLERANCE


def in_buckets() -> None:
    """Take our default away, as stock Megatron runs: the optimizer state is saved as it lies in memory."""
    from megatron_cod.training.flags import command_line

    original = command_line.default_flags

    def without(user_flags):
        flags, lines = original(user_flags)
        return [flag for flag in flags if flag != "--dist-ckpt-optim-fully-reshardable"], lines

    command_line.default_flags = without


@pytest.fixture(scope="module")
def buckets(tmp_path_factory, tiny):
    """A real checkpoint, PP 2, whose optimizer state cannot be resharded."""
    folder = tmp_path_factory.mktemp("buckets")
    flags = [*tiny, *PP2, OPTIMIZER, "--train-iters", "4", "--eval-iters", "0", "--lr-decay-iters", "8"]
    ended = run_training_ranks(2, [*flags, "--save", str(folder), "--save-interval", "4"], before=in_buckets)
    assert [rank.code for rank in ended] == [0, 0], ended[0].output[-2000:]
    return folder


WRONG = {
    "tp2 pp1": (2, ["--tensor-model-parallel-size", "2"], "this run is TP 2 x PP 1 x EP 1 x VPP 1"),
    "pp1": (1, [], "this run is TP 1 x PP 1 x EP 1 x VPP 1"),
    "pp2 vp2": (
        2,
        [*PP2, "--num-virtual-stages-per-pipeline-rank", "2"],
        "this run is TP 1 x PP 2 x EP 1 x VPP 2",
    ),
}


@pytest.mark.slow_except("pp1", "pp2 vp2")
@pytest.mark.parametrize(("world", "layout", "now"), WRONG.values(), ids=WRONG)
def test_rejects_optimizer_state_that_cannot_be_resharded(buckets, tiny, world, layout, now):
    said = rf"cannot be resharded \(dp_reshardable\), saved at TP 1 x PP 2 x EP 1 x VPP 1, {now}: load it at the saved"
    refuse(world, [*tiny, *layout, OPTIMIZER, "--load", str(buckets)], said)


def test_named_remedy_works(buckets, tiny):
    ended = succeed(1, [*tiny, OPTIMIZER, "--load", str(buckets), "--no-load-optim"])
    assert "step 8/8 | loss" in ended[0].output


def test_reshards_buckets_and_adam_of_torch(buckets, tiny):
    """Megatron cannot load them into torch's AdamW at the saved layout either: said before anything starts."""
    pytest.importorskip("torch")
    from megatron_cod.checkpoint.optimizer_layout import HAVE_APEX_OR_TE

    if HAVE_APEX_OR_TE:
        pytest.skip("Transformer Engine or Apex is here")
    refuse(2, [*tiny, *PP2, OPTIMIZER, "--load", str(buckets)], r"with torch's AdamW not be loaded at all: give --no-")


@pytest.mark.parametrize("optimizer", [[], [OPTIMIZER]], ids=["plain", "distributed"])
@pytest.mark.slow
def test_rejects_the_other_optimizer(saved, tiny, optimizer):
    _, stopped = saved(*optimizer)
    other = [] if optimizer else [OPTIMIZER]
    said = rf"saved {'with' if optimizer else 'without'} --use-distributed-optimizer.*or give --no-load-optim"
    refuse(1, [*tiny, *other, "--load", str(stopped)], said)


@pytest.mark.gpu
def test_loads_pre_ln_of_torch_into_transformer_engine(tiny, tmp_path):
    """The stock scheme saved on the torch backend, resumed on Transformer Engine. Kernels differ: 1e-3 in fp32."""
    pytest.importorskip("transformer_engine")
    scheme = ["--norm-scheme", "pre_ln"]
    torch_flags = ["--transformer-impl", "local", "--no-persist-layer-norm", "--no-gradient-accumulation-fusion"]
    whole, other = tmp_path / "whole", tmp_path / "other"
    succeed(1, [*tiny, *scheme, *torch_flags, "--save", str(whole), "--save-interval", "4"])
    stopped = at_step_4(whole, tmp_path / "stopped")
    flags = [*scheme, "--transformer-impl", "transformer_engine", "--no-gradient-accumulation-fusion"]
    succeed(1, [*tiny, *flags, "--load", str(stopped), "--save", str(other), "--save-interval", "4"])
    expected, (train, _) = losses(whole)[0], losses(other)
    assert set(train) == {5, 6, 7, 8}
    assert max(abs(train[step] - expected[step]) for step in train) <= 1e-3
