"""Checkpoints say what they are; saves that are killed at any stage lose nothing and leave nothing behind."""

import re
import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

import megatron_cod
from megatron_cod.analysis.metrics import read_metrics
from megatron_cod.checkpoint.compatibility import check_scheme, differences
from megatron_cod.checkpoint.directory import TRACKER, check_files, iterations, newest_whole, read_tracker
from megatron_cod.checkpoint.selection import saved_state
from tests.distributed.kills import STAGES, run_until_killed
from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import PP2, losses, refuse, succeed

OVERRIDE = "--override-opt_param-scheduler"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("checkpoint")
    flags = [*tiny, "--train-iters", "2", "--eval-iters", "0", "--save", str(folder), "--save-interval", "2"]
    succeed(1, flags)
    return folder


def test_checkpoint_records_scheme(checkpoint):
    saved = saved_state(checkpoint / "iter_0000002")["args"]
    assert (saved.norm_scheme, saved.scheme_exponent, saved.init_policy) == ("lns", -0.5, "normal")
    assert saved.megatron_cod_version == megatron_cod.__version__


def another_exponent() -> None:
    """A version of this package whose factor is 1/l."""
    from megatron_cod.schemes import lns

    lns.DEPTH_EXPONENT = -1.0


def test_rejects_another_exponent_without_override(checkpoint, tiny):
    flags = [*tiny, "--load", str(checkpoint), "--dry-run", "--override-opt_param-scheduler"]
    said = r"lns of scheme_exponent -0.5 \(this run: -1.0\); .*--override-scheme-check"
    refuse(1, flags, said, before=another_exponent)
    ended = run_training_ranks(1, [*flags, "--override-scheme-check"], before=another_exponent)[0]
    assert ended.code == 0
    assert re.search(r"WARNING: checkpoint .* of scheme_exponent -0.5.*loading it anyway", ended.output)


def test_warns_of_another_init_policy(checkpoint, tiny):
    ended = succeed(1, [*tiny, "--load", str(checkpoint), "--dry-run", "--init-policy", "scaled", OVERRIDE])[0]
    assert "was initialised with --init-policy normal; scaled has no effect here" in ended.output


@pytest.mark.parametrize("how", ["finetune", "release", "pretrained", "step"])
def test_every_way_of_loading_is_checked(checkpoint, tiny, tmp_path, how):
    folder = tmp_path / "other"
    shutil.copytree(checkpoint / "iter_0000002", folder / ("release" if how == "release" else "iter_0000002"))
    (folder / TRACKER).write_text("release" if how == "release" else "2")
    flags = {
        "finetune": ["--load", str(folder), "--finetune"],
        "release": ["--load", str(folder)],
        "pretrained": ["--load", str(tmp_path / "none"), "--pretrained-checkpoint", str(folder)],
        "step": ["--load", str(folder), "--ckpt-step", "2"],
    }[how]
    refuse(1, [*tiny, *flags, "--norm-scheme", "pre_ln", "--dry-run"], "was trained with --norm-scheme lns")


def test_loads_checkpoints_of_stock_megatron_and_older_versions():
    place, stock = Path("s"), Namespace()
    pre_ln, lns = (
        SimpleNamespace(norm_scheme=scheme, init_policy="scaled", num_layers=4) for scheme in ("pre_ln", "lns")
    )
    assert check_scheme(place, stock, pre_ln, False) == []
    with pytest.raises(ValueError, match="trained with --norm-scheme pre_ln, this run has lns"):
        check_scheme(place, stock, lns, False)
    older = Namespace(norm_scheme="lns", init_policy=None)
    assert check_scheme(place, older, lns, False) == []
    assert differences(place, stock, lns) == differences(place, older, lns) == []
    newer = Namespace(megatron_cod_version="9.0", init_policy="scaled")
    assert differences(place, newer, lns) == [f"s was saved by megatron_cod 9.0, this is {megatron_cod.__version__}"]


@pytest.mark.slow
def test_load_directory_is_unchanged(checkpoint, tiny, tmp_path):
    folder = tmp_path / "theirs"
    shutil.copytree(checkpoint, folder)
    (folder / "iter_0000009").mkdir()
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    flags = [*tiny, "--load", str(folder)]
    more = ["--save", str(tmp_path / "ours"), "--save-interval", "8", "--override-opt-param-scheduler"]
    ended = succeed(1, [*flags, *more])[0]
    assert "iter_0000009 is ignored" in ended.output
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before
    (folder / TRACKER).write_text("")
    refuse(1, flags, r"is empty, .* checkpoint is 2: write 2 ")


def test_a_dry_run_removes_nothing(tiny, tmp_path):
    (tmp_path / "s" / "iter_0000009").mkdir(parents=True)
    succeed(1, [*tiny, "--save", str(tmp_path / "s"), "--save-interval", "4", "--dry-run"])
    assert (tmp_path / "s" / "iter_0000009").is_dir()


def unbroken(tiny, folder: Path, steps: int):
    succeed(2, [*tiny, *PP2, "--train-iters", str(steps), "--save", str(folder), "--save-interval", str(steps)])
    return losses(folder)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def kill_and_go_on(tiny, folder: Path, steps: int, kills: list[tuple[str, int]]) -> None:
    """Train ``steps``, killed at each (stage, iteration); checks what is on disk after every kill and at the end."""
    save = ["--save", str(folder), "--load", str(folder), "--save-interval", "1", "--keep-last-checkpoints", "2"]
    flags = [*tiny, *PP2, "--train-iters", str(steps), *save]
    for number, (stage, iteration) in enumerate(kills):
        run_until_killed(2, flags, stage, iteration, folder.parent / "pids" / str(number))
        text = read_tracker(folder)
        # A random moment may be the one at which the tracker is empty.
        assert (text == "") == (stage == "empty tracker") or stage.startswith("random")
        latest, _ = newest_whole(folder)
        if latest is None:
            assert iteration == 1
            continue
        check_files(latest)
        tracked = int(latest.name.removeprefix("iter_"))
        assert tracked >= iteration - 1 if stage.startswith("random") else tracked in (iteration - 1, iteration)
        assert tracked == 1 or tracked - 1 in iterations(folder), "fewer than two are kept"
    ended = succeed(2, flags)
    assert f"step {steps}/{steps} | loss" in ended[0].output
    assert leftovers(folder) == []
    assert list(iterations(folder)) == [steps - 1, steps]
    for path in iterations(folder).values():
        check_files(path)


@pytest.mark.slow
def test_three_kills_change_nothing(tiny, tmp_path):
    kills = [("data without index", 3), ("empty tracker", 5), ("in a deletion", 7)]
    kill_and_go_on(tiny, tmp_path / "killed", 8, kills)
    assert losses(tmp_path / "killed") == unbroken(tiny, tmp_path / "whole", 8)


@pytest.mark.slow
def test_many_kills_change_nothing(tiny, tmp_path):
    """Every stage, the first save included, and random moments."""
    kills = [(stage, 1 + 2 * number) for number, stage in enumerate(["data without index", *STAGES])]
    kills += [(f"random {seed}", 20 + 5 * seed) for seed in range(8)]  # a tenth of a second is up to three saves
    steps = 62
    kill_and_go_on(tiny, tmp_path / "killed", steps, kills)
    assert losses(tmp_path / "killed") == unbroken(tiny, tmp_path / "whole", steps)


@pytest.mark.slow
def test_the_newest_are_kept_to_the_last_save(tiny, tmp_path):
    """Multiples of Megatron's own interval as well; --exit-interval leaves Megatron's loop by SystemExit."""
    save = ["--save", str(tmp_path), "--save-interval", "1", "--keep-last-checkpoints", "2"]
    succeed(2, [*tiny, *save, "--eval-iters", "0", "--save-retain-interval", "3", "--exit-interval", "7"])
    assert list(iterations(tmp_path)) == [3, 6, 7]
    assert read_tracker(tmp_path) == "7"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("before its data", r"removed an interrupted save: \S+iter_0000002"),
        (
            "before the tracker",
            r"iter_0000002 is complete but newer than .*: not loaded, kept as untracked-iter_0000002",
        ),
        ("empty tracker", r"latest_checkpointed_iteration.txt was empty.*it names iter_0000002 now"),
    ],
    ids=["incomplete", "complete", "empty tracker"],
)
@pytest.mark.slow
def test_next_start_logs_the_checkpoints_it_found(tiny, tmp_path, stage, said):
    folder = tmp_path / "s"
    flags = [*tiny, "--eval-iters", "0", "--save", str(folder), "--load", str(folder), "--save-interval", "1"]
    run_until_killed(1, flags, stage, 2, tmp_path / "pids")
    ended = succeed(1, [*flags, "--exit-interval", "3"])
    assert len(re.findall(said, ended[0].output)) == 1, ended[0].output[:3000]
    assert read_metrics(folder / "metrics.jsonl").last_step() == 3
