"""Stop and go on: to the bit at the same layout, within 1e-5 at another; the scheme is checked on the way in."""

import re
import shutil

import pytest
import yaml

from megatron_cod.analysis.metrics import read_metrics
from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import PP2, losses, succeed


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny):
    """A whole run of 8 steps that saves at 4, and what it says of itself."""
    whole = tmp_path_factory.mktemp("whole")
    ended = succeed(2, [*tiny, *PP2, "--save", str(whole), "--save-interval", "4"])
    return whole, ended


@pytest.fixture()
def stopped(runs, tmp_path):
    """The same run as it was on disk after step 4."""
    whole, _ = runs
    folder = tmp_path / "stopped"
    shutil.copytree(whole / "iter_0000004", folder / "iter_0000004")
    (folder / "latest_checkpointed_iteration.txt").write_text("4")
    return folder


@pytest.mark.slow
def test_logs_and_records_the_run(runs):
    whole, ended = runs
    output = ended[0].output + ended[1].output
    assert "pipeline stage 1, virtual stage 0: layers 3..4, norm factors 0.5774..0.5000" in output
    assert "1/sqrt(2L) scaling is off" in output
    assert "step 8/8 | loss" in output
    assert re.search(r"tokens/s \(.* each\) \| \S+ tokens seen \| ETA", output)
    resolved = yaml.safe_load((whole / "resolved_args.yaml").read_text())
    assert resolved["norm-scheme"] == "lns"
    assert resolved["init-policy"] == "normal"
    assert resolved["num-layers"] == 4
    assert list((whole / "tensorboard").iterdir())
    variance = read_metrics(whole / "metrics.jsonl").stream_variance()
    assert list(variance) == [1, 2, 3, 4]
    assert all(value > 0 for value in variance.values())


def test_stopping_changes_nothing_to_the_bit(runs, tiny, tmp_path):
    whole, _ = runs
    folder = tmp_path / "two_parts"
    save = ["--save", str(folder), "--save-interval", "4"]
    succeed(2, [*tiny, *PP2, *save, "--exit-interval", "4"])
    assert max(losses(folder)[0]) == 4
    succeed(2, [*tiny, *PP2, *save, "--load", str(folder)])
    assert losses(folder) == losses(whole)


@pytest.mark.slow
def test_detects_changed_seed(runs, tiny, tmp_path):
    """The comparison above can fail: another data order gives other losses."""
    succeed(2, [*tiny, *PP2, "--save", str(tmp_path / "x"), "--save-interval", "8", "--seed", "7"])
    assert losses(tmp_path / "x") != losses(runs[0])


OTHER_LAYOUTS = {
    "pp1": (1, []),
    "pp4": (4, ["--pipeline-model-parallel-size", "4"]),
    "pp2 vp2": (2, [*PP2, "--num-virtual-stages-per-pipeline-rank", "2"]),
    "tp2 sp": (2, ["--tensor-model-parallel-size", "2", "--sequence-parallel"]),
    "dp2": (2, []),
}


@pytest.mark.parametrize(("world", "flags"), OTHER_LAYOUTS.values(), ids=OTHER_LAYOUTS)
@pytest.mark.slow
def test_resumes_at_another_layout(runs, stopped, tiny, tmp_path, world, flags):
    folder = tmp_path / "other"
    succeed(world, [*tiny, *flags, "--load", str(stopped), "--save", str(folder), "--save-interval", "4"])
    train, valid = losses(folder)
    expected_train, expected_valid = losses(runs[0])
    assert set(train) == {5, 6, 7, 8}
    assert max(abs(train[step] - expected_train[step]) for step in train) <= 1e-5
    assert abs(valid[8] - expected_valid[8]) <= 1e-5


@pytest.mark.slow
def test_the_distributed_optimizer_reshards_without_a_flag(tiny, tmp_path):
    """Saved at DP 2 with sharded optimizer states, resumed at the same, TP 2 and PP 2: the unbroken run's losses."""
    optimizer = "--use-distributed-optimizer"
    folder = tmp_path / "whole"
    succeed(2, [*tiny, optimizer, "--save", str(folder), "--save-interval", "4"])
    expected, _ = losses(folder)
    (folder / "latest_checkpointed_iteration.txt").write_text("4")
    layouts = {"dp2": [], "pp2": PP2, "tp2": ["--tensor-model-parallel-size", "2"]}
    for name, layout in layouts.items():
        other = tmp_path / name
        succeed(2, [*tiny, *layout, optimizer, "--load", str(folder), "--save", str(other), "--save-interval", "4"])
        train, _ = losses(other)
        assert set(train) == {5, 6, 7, 8}
        assert max(abs(train[step] - expected[step]) for step in train) <= (0 if name == "dp2" else 1e-5)


def test_rejects_another_scheme_without_override(stopped, tiny):
    flags = [*tiny, "--load", str(stopped), "--norm-scheme", "pre_ln"]
    ended = run_training_ranks(1, flags)[0]
    assert ended.code == 2
    assert "was trained with --norm-scheme lns, this run has pre_ln; use lns" in ended.output
    ended = succeed(1, [*flags, "--override-scheme-check"])[0]
    assert "WARNING: checkpoint" in ended.output
    assert "loading it anyway" in ended.output
