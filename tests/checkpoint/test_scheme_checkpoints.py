"""What a scheme adds to checkpoints reshards; a residual warm-up and Mix-LN's boundary follow the run, not the layout."""

import pytest

from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import PP2, at_step_4, losses, refuse, succeed

TP2_SP = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
DISTRIBUTED = "--use-distributed-optimizer"
SCHEMES = {
    "layerscale": [DISTRIBUTED],
    "skipinit": [],
    "sandwich_ln": [DISTRIBUTED],
    "deepnorm": [],
    "mix_ln": ["--mix-ln-post-layers", "3"],
    "lns": ["--residual-warmup-steps", "3"],
}


@pytest.fixture(scope="module", params=SCHEMES)
def run(request, tmp_path_factory, tiny):
    """Flags, losses of 8 steps at PP 2, and the directory as it was after step 4."""
    flags = [*tiny, "--norm-scheme", request.param, *SCHEMES[request.param]]
    whole = tmp_path_factory.mktemp("whole")
    succeed(2, [*flags, *PP2, "--save", str(whole), "--save-interval", "4"])
    return flags, losses(whole), at_step_4(whole, tmp_path_factory.mktemp("stopped") / "s")


def go_on(flags: list[str], stopped, world: int, layout: list[str], folder) -> tuple[dict, dict]:
    succeed(world, [*flags, *layout, "--load", str(stopped), "--save", str(folder), "--save-interval", "4"])
    return losses(folder)


@pytest.mark.slow
def test_resumes_exactly_and_at_other_layouts(run, tmp_path):
    flags, (train, valid), stopped = run
    same = go_on(flags, stopped, 2, PP2, tmp_path / "same")
    assert same == ({step: train[step] for step in (5, 6, 7, 8)}, {8: valid[8]})
    for name, world, layout in (("tp2", 2, TP2_SP), ("pp1", 1, [])):
        found, _ = go_on(flags, stopped, world, layout, tmp_path / name)
        assert set(found) == {5, 6, 7, 8}
        assert max(abs(found[step] - train[step]) for step in found) <= 1e-5, name


def clock_from_zero() -> None:
    """The mutant: a resumed run warms its branches up again."""
    from megatron_cod.training.data import batches

    right = batches.set_training_step
    batches.set_training_step = lambda chunks, step: right(chunks, step - 4)


@pytest.mark.slow
def test_detects_warm_up_that_starts_again(tiny, tmp_path):
    flags = [*tiny, "--residual-warmup-steps", "3"]
    succeed(1, [*flags, "--save", str(tmp_path / "whole"), "--save-interval", "4"])
    stopped = at_step_4(tmp_path / "whole", tmp_path / "stopped")
    more = ["--load", str(stopped), "--save", str(tmp_path / "x"), "--save-interval", "4"]
    ended = run_training_ranks(1, [*flags, *more], before=clock_from_zero)
    assert ended[0].code == 0, ended[0].output[-2000:]
    assert abs(losses(tmp_path / "x")[0][5] - losses(tmp_path / "whole")[0][5]) > 1e-3


@pytest.mark.slow
def test_rejects_another_boundary(tiny, tmp_path):
    flags = [*tiny, "--norm-scheme", "mix_ln"]
    succeed(1, [*flags, "--train-iters", "2", "--eval-iters", "0", "--save", str(tmp_path), "--save-interval", "2"])
    more = ["--mix-ln-post-layers", "2", "--load", str(tmp_path), "--dry-run"]
    refuse(1, [*flags, *more], r"trained with mix_ln of mix_ln_post_layers 1 \(this run: 2\); give the same, or")
