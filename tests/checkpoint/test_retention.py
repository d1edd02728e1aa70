"""Which directories retention and the cleaning at start remove, on made-up trees: no training."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cod.checkpoint import retention
from megatron_cod.checkpoint.directory import TRACKER, iteration_name, iterations, latest_checkpoint, newest_whole
from megatron_cod.checkpoint.retention import DELETING, clean, surplus
from megatron_cod.checkpoint.selection import check_save
from megatron_cod.training.faults import checkpoint_deletion
from megatron_cod.training.faults.checkpoint_deletion import Retention
from megatron_cod.training.flags.parser import UsageError, build_parser

STRANGERS = ("iter_5", "iter_00000007", "iter_0000003.bak", "xiter_0000001", "iteration_3", "release", "tensorboard")


def make(root: Path, complete=(), incomplete=(), tracker: str | None = None) -> Path:
    for iteration in [*complete, *incomplete]:
        folder = root / iteration_name(iteration)
        folder.mkdir(parents=True)
        (folder / "__0_0.distcp").write_text("x")
        if iteration in complete:
            (folder / "metadata.json").write_text("{}")
    root.mkdir(exist_ok=True)
    if tracker is not None:
        (root / TRACKER).write_text(tracker)
    return root


def names(root: Path) -> set[int]:
    return set(iterations(root))


def keeper(root: Path, keep: int, every: int | None = None) -> Retention:
    args = SimpleNamespace(save=str(root), keep_last_checkpoints=keep, save_retain_interval=every, curr_iteration=0)
    made = Retention(args, print)
    assert args.save_retain_interval is None
    return made


def run_out(kept: Retention) -> None:
    with kept.around_training():
        pass


@given(
    existing=st.sets(st.integers(1, 40), min_size=1, max_size=12),
    choose=st.integers(0, 11),
    keep=st.integers(1, 14),
    every=st.none() | st.integers(1, 6),
)
@settings(max_examples=200, deadline=None)
def test_keeps_newest_and_multiples(tmp_path_factory, existing, choose, keep, every):
    tracked = sorted(existing)[choose % len(existing)]
    root = make(tmp_path_factory.mktemp("kept"), existing, tracker=str(tracked))
    for stranger in STRANGERS:
        (root / stranger).mkdir()
    run_out(keeper(root, keep, every))
    left = names(root)
    older = sorted(number for number in existing if number <= tracked)
    assert tracked in left
    assert {number for number in existing if number > tracked} <= left
    assert set(older[-keep:]) <= left
    assert {number for number in older[:-keep] if number in left} == {
        number for number in older[:-keep] if every and number % every == 0
    }
    assert all((root / stranger).is_dir() for stranger in STRANGERS)
    assert not list(root.glob(f"{DELETING}*"))


@pytest.mark.parametrize("tracker", [None, "", "release", "9", "abc"])
def test_without_a_tracker_to_go_by_nothing_is_deleted(tmp_path, tracker):
    make(tmp_path / "s", [1, 2, 3], tracker=tracker)
    run_out(keeper(tmp_path / "s", 1))
    assert names(tmp_path / "s") == {1, 2, 3}


def test_deletes_only_after_a_save(tmp_path):
    root = make(tmp_path / "s", [1, 2], tracker="2")
    kept = keeper(root, 2)
    kept.check_tracker()
    make(root, [3, 4])  # a save still under way
    kept.check_tracker()
    assert names(root) == {1, 2, 3, 4}
    (root / TRACKER).write_text("4")
    os.utime(root / TRACKER, (1, 1))
    run_out(kept)
    assert names(root) == {3, 4}


def test_links_are_unchanged(tmp_path):
    root = make(tmp_path / "s", [2, 3], tracker="3")
    elsewhere = make(tmp_path / "other", [1])
    (root / iteration_name(1)).symlink_to(elsewhere / iteration_name(1))
    run_out(keeper(root, 1))
    assert names(root) == {1, 3}
    assert (elsewhere / iteration_name(1) / "metadata.json").exists()


def test_a_checkpoint_is_never_half_there_under_its_own_name(tmp_path, monkeypatch):
    """At the moment the first file goes, the directory no longer has a name that a loader takes."""
    root = make(tmp_path / "s", [1, 2], tracker="2")

    def killed(path):
        assert Path(path).name == DELETING + iteration_name(1)
        assert names(root) == {2}

    monkeypatch.setattr(retention.shutil, "rmtree", killed)
    run_out(keeper(root, 1))
    monkeypatch.undo()
    assert (root / (DELETING + iteration_name(1))).is_dir()
    clean(root, print)
    assert sorted(path.name for path in root.iterdir()) == [iteration_name(2), TRACKER]


def test_a_failing_deletion_ends_no_training(tmp_path, monkeypatch, capsys):
    root = make(tmp_path / "s", [1, 2], tracker="2")
    monkeypatch.setattr(checkpoint_deletion, "hide", lambda _: (_ for _ in ()).throw(PermissionError("no")))
    run_out(keeper(root, 1))
    assert "WARNING: --keep-last-checkpoints cannot delete: no" in capsys.readouterr().out


@given(
    complete=st.sets(st.integers(1, 20), max_size=6),
    incomplete=st.sets(st.integers(1, 20), max_size=6),
    choose=st.none() | st.integers(0, 5),
)
@settings(max_examples=200, deadline=None)
def test_start_removes_interrupted_saves(tmp_path_factory, complete, incomplete, choose):
    incomplete -= complete
    tracked = sorted(complete)[choose % len(complete)] if complete and choose is not None else None
    root = make(tmp_path_factory.mktemp("clean"), complete, incomplete, None if tracked is None else str(tracked))
    lines: list[str] = []
    clean(root, lines.append)
    newer = {number for number in complete | incomplete if number > (tracked or 0)}
    assert names(root) == (complete | incomplete) - newer
    assert {int(path.name[-7:]) for path in root.glob("untracked-iter_*")} == newer & complete
    assert sum("removed an interrupted save: " in line for line in lines) == len(newer & incomplete)
    assert sum("is complete but newer" in line for line in lines) == len(newer & complete)


def test_iteration_to_load_is_kept(tmp_path):
    root = make(tmp_path / "s", [2, 4, 6], tracker="2")
    clean(root, print, spare=4)
    assert names(root) == {2, 4}


@pytest.mark.parametrize("left", ["", "\0\0\0"])
def test_empty_tracker_gets_newest_checkpoint(tmp_path, left):
    root = make(tmp_path / "s", [2, 4, 10], [12], tracker=left)
    with pytest.raises(ValueError, match="newest complete checkpoint is 10: write 10 into the file"):
        latest_checkpoint(root)
    assert newest_whole(root)[0] == root / iteration_name(10)
    with pytest.raises(ValueError, match="already holds checkpoints; resume them with --load"):
        check_save(str(root), None)
    check_save(str(root), str(root))
    assert (root / TRACKER).read_text() == left  # only looked at so far
    clean(root, print)
    assert (root / TRACKER).read_text() == "10"
    assert names(root) == {2, 4, 10}
    assert latest_checkpoint(root) == root / iteration_name(10)


def test_rejects_empty_tracker_without_complete_checkpoint(tmp_path):
    root = make(tmp_path / "s", [], [2], tracker="")
    with pytest.raises(ValueError, match="delete it to start from scratch"):
        latest_checkpoint(root)
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole \(iter_0000002: .*metadata.json is missing"):
        newest_whole(root)


def test_damaged_checkpoints_are_skipped_and_kept(tmp_path, capsys):
    root = make(tmp_path / "s", [2, 4], [6, 8], tracker="8")
    assert newest_whole(root)[0] == root / iteration_name(4)
    told = []
    clean(root, print, damaged=lambda path, why: told.append((path.name, why)))
    assert [name for name, _ in told] == [iteration_name(8), iteration_name(6)]
    assert all("metadata.json is missing" in why for _, why in told)
    assert (root / TRACKER).read_text() == "4" and names(root) == {2, 4}
    assert {path.name for path in root.glob("damaged-*")} == {f"damaged-{iteration_name(n)}" for n in (6, 8)}
    assert capsys.readouterr().out.count("resuming from iter_0000004") == 2
    clean(root, print)  # and once more: nothing is left to be said
    assert not capsys.readouterr().out and names(root) == {2, 4}


def test_missing_tracked_checkpoint_is_skipped(tmp_path, capsys):
    root = make(tmp_path / "s", [2], tracker="4")
    assert newest_whole(root)[0] == root / iteration_name(2)
    clean(root, print)
    assert (root / TRACKER).read_text() == "2"
    assert "iter_0000004 does not exist; resuming from iter_0000002" in capsys.readouterr().out


def test_a_kill_between_tracker_and_renaming_changes_nothing(tmp_path, monkeypatch):
    root = make(tmp_path / "s", [2], [4], tracker="4")

    def killed(self, target):
        if "damaged" in str(target):
            raise KeyboardInterrupt
        os.rename(self, target)
        return Path(target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        clean(root, print)
    monkeypatch.undo()
    assert newest_whole(root)[0] == root / iteration_name(2)
    clean(root, print)  # an interrupted save like any other now
    assert names(root) == {2}


def test_nothing_changes_without_a_complete_checkpoint(tmp_path):
    root = make(tmp_path / "s", [], [2, 4], tracker="4")
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole"):
        clean(root, print)
    assert names(root) == {2, 4} and (root / TRACKER).read_text() == "4"


def test_rejects_saves_that_would_overwrite(tmp_path):
    root = str(make(tmp_path / "s", [2, 4], tracker="4"))
    check_save(root, root)
    check_save(root, root, step=4)
    for wrong in ({"step": 2}, {"finetune": True}):
        with pytest.raises(ValueError, match=r"would overwrite checkpoints up to .*iter_0000004; give another --save"):
            check_save(root, root, **wrong)
    first = str(make(tmp_path / "first", [], [2]))
    check_save(first, None)


def test_rejects_invalid_number_of_checkpoints():
    parser = build_parser()
    assert parser.parse_args(["--keep-last-checkpoints", "2"]).keep_last_checkpoints == 2
    for wrong in ("0", "-1", "x"):
        with pytest.raises(UsageError, match=r"--keep-last-checkpoints: .* is not a number of at least 1"):
            parser.parse_args([f"--keep-last-checkpoints={wrong}"])


def keeps_the_newest_by_name(directory, keep, every=None):
    """A mutant: does not ask the tracker."""
    return list(iterations(directory).values())[:-keep]


def one_too_few(directory, keep, every=None):
    """A mutant: off by one, the tracked checkpoint goes too."""
    finished = [path for number, path in iterations(directory).items()]
    return finished[: len(finished) - keep + 1]


@pytest.mark.parametrize("mutant", [keeps_the_newest_by_name, one_too_few])
def test_detects_deletion_of_tracked_checkpoint(tmp_path, monkeypatch, mutant):
    """The trees above tell right from wrong: with these, the tracked checkpoint is gone."""
    root = make(tmp_path / "s", [1, 2, 3], tracker="2" if mutant is keeps_the_newest_by_name else "3")
    tracked = latest_checkpoint(root)
    assert tracked not in surplus(root, 1)
    monkeypatch.setattr(checkpoint_deletion, "surplus", mutant)
    run_out(keeper(root, 1))
    assert not tracked.is_dir()
