"""Which checkpoints are exported, when, and what an interrupted export leaves: on made-up trees, with processes that stand
in for the exports."""

import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_cod.checkpoint.directory import TRACKER, iteration_name, iterations
from megatron_cod.checkpoint.events import Events, read_events
from megatron_cod.training.exports import observer
from megatron_cod.training.exports.observer import FOLDER, Export, Exports
from megatron_cod.training.faults.checkpoint_deletion import Retention
from tests.training.exports.started import Started


@pytest.fixture
def started(monkeypatch) -> Started:
    made = Started()
    monkeypatch.setattr(observer, "start_export", made)
    monkeypatch.setattr(observer.time, "sleep", lambda _: made.end_all())
    return made


class Trained:
    """The observers of a run that exports, and its ``--save``."""

    def __init__(self, save: Path, every: int = 2, **more: Any) -> None:
        known = {"keep_last_checkpoints": None, "save_retain_interval": None, "residual_warmup_steps": None}
        self.args = SimpleNamespace(
            save=str(save), hf_export_interval=every, skip_train=False, rank=0, num_layers=4, import_modules=[], **known
        )
        vars(self.args).update(more)
        self.save, self.lines = save, []
        save.mkdir(exist_ok=True)
        self.run = SimpleNamespace(args=self.args, log=self.lines.append, events=Events(str(save), 0), in_use=set())
        self.retention = Retention.of(self.run)
        self.exports = Exports.of(self.run)

    def checkpoint(self, step: int) -> Path:
        folder = self.save / iteration_name(step)
        folder.mkdir()
        (folder / "metadata.json").write_text("{}")
        (self.save / TRACKER).write_text(str(step))
        os.utime(self.save / TRACKER, (step, step))
        return folder

    def step(self, saved: int | None = None) -> None:
        """The step after one that saved, or did not."""
        if saved is not None:
            self.checkpoint(saved)
        for one in (self.retention, self.exports):
            if one is not None:
                one.step_begins()

    def end(self, error: type[BaseException] | None = None) -> None:
        try:
            with self.exports.around_training():
                if error is not None:
                    raise error
        except BaseException as raised:
            assert type(raised) is error
        if self.retention is not None:
            with self.retention.around_training():
                pass

    def exported(self) -> list[int]:
        return list(iterations(self.save / FOLDER))


def test_exports_multiples_of_the_interval_and_the_last(tmp_path, started):
    trained = Trained(tmp_path / "s", every=4)
    for step in range(1, 12):
        trained.step(saved=step if step % 2 == 0 else None)
        started.end_all()
    trained.checkpoint(11)
    trained.end()
    assert started.steps == [4, 8, 11] and trained.exported() == [4, 8, 11]
    assert [line.split(" in ")[0] for line in trained.lines if line.startswith("exported")] == [
        f"exported {iteration_name(step)} to {tmp_path / 's' / FOLDER / iteration_name(step)}" for step in (4, 8, 11)
    ]
    assert "waiting up to 30 minutes for the export of iter_0000011" in trained.lines


def test_one_export_at_a_time_and_the_newest_waits(tmp_path, started):
    trained = Trained(tmp_path / "s")
    for step in (2, 4, 6, 8):
        trained.step(saved=step)
    assert started.steps == [2]
    assert [line for line in trained.lines if "not exported" in line] == [
        f"{iteration_name(step)} is not exported: exports take longer than 2 steps" for step in (4, 6)
    ]
    started.end_all()
    trained.step()
    trained.end()
    assert started.steps == [2, 8] == trained.exported()


@pytest.mark.parametrize("flags", [{"keep_last_checkpoints": 1}, {"save_retain_interval": 100}])
def test_retention_leaves_what_is_exported(tmp_path, started, flags):
    trained = Trained(tmp_path / "s", **flags)
    assert trained.args.save_retain_interval is None, "Megatron would delete too"
    trained.step(saved=2)
    trained.step(saved=3)
    trained.step(saved=4)
    trained.step(saved=5)
    assert list(iterations(trained.save)) == [2, 4, 5], "2 is read, 4 waits"
    started.end_all()
    trained.step()
    trained.step(saved=7)
    assert list(iterations(trained.save)) == [4, 7], "4 is read"
    trained.end()
    assert list(iterations(trained.save)) == [7] and trained.exported() == [2, 4, 7]


def test_without_exports_megatron_deletes_itself(tmp_path):
    trained = Trained(tmp_path / "s", every=None, save_retain_interval=100)
    assert trained.retention is trained.exports is None and trained.args.save_retain_interval == 100


def test_a_failed_export_is_a_warning_and_an_event(tmp_path, started):
    trained = Trained(tmp_path / "s")
    started.code, started.text = 2, b"note: x\nerror: the disk has 0.00 GB free\n"
    trained.step(saved=2)
    started.end_all()
    trained.step()
    trained.step()
    started.code, started.text = -9, b""
    trained.step(saved=4)
    trained.end()
    assert started.steps == [2, 4], "none is tried again"
    assert [line for line in trained.lines if line.startswith("WARNING")] == [
        "WARNING: the export of iter_0000002 failed: the disk has 0.00 GB free",
        "WARNING: the export of iter_0000004 failed: it was ended by signal 9",
    ]
    failed = [(one["step"], one["why"]) for one in read_events(trained.save) if one["event"] == "export failed"]
    assert failed == [(2, "the disk has 0.00 GB free"), (4, "it was ended by signal 9")]


def test_an_export_that_cannot_be_started_is_a_warning(tmp_path, monkeypatch):
    def fails(*_: Any) -> Export:
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(observer, "start_export", fails)
    trained = Trained(tmp_path / "s")
    trained.step(saved=2)
    trained.end()
    assert trained.lines == ["WARNING: the export of iter_0000002 failed: Cannot allocate memory"]
    assert trained.run.in_use == set()


@pytest.mark.parametrize("error", [SystemExit, RuntimeError])
def test_a_run_that_stops_waits_for_no_export(tmp_path, started, error):
    trained = Trained(tmp_path / "s")
    trained.step(saved=2)
    trained.end(error)
    assert started.running[0].killed and trained.exported() == []
    assert trained.lines == ["the export of iter_0000002 is not finished: the next start resumes it"]
    again = Trained(tmp_path / "s")
    again.step()
    started.end_all()
    again.step()
    assert started.steps == [2, 2] and again.exported() == [2]


def test_the_wait_at_the_end_is_bounded(tmp_path, started, monkeypatch):
    monkeypatch.setattr(observer, "SECONDS_AT_THE_END", 0.0)
    trained = Trained(tmp_path / "s")
    trained.step(saved=2)
    trained.end()
    assert started.running[0].killed and trained.exported() == []


def test_the_wait_ends_on_sigterm(tmp_path, started, monkeypatch):
    monkeypatch.setattr(observer.time, "sleep", lambda _: os.kill(os.getpid(), observer.signal.SIGTERM))
    trained = Trained(tmp_path / "s")
    trained.step(saved=2)
    trained.end()
    assert started.running[0].killed


def test_the_next_start_resumes_the_newest_and_removes_the_rest(tmp_path, started):
    """Retention may have kept what was due before the newest checkpoint, which is of a stop at step 5."""
    trained = Trained(tmp_path / "s")
    for step in (2, 4, 5):
        trained.checkpoint(step)
    for step in (2, 4):
        (trained.save / FOLDER / f"{iteration_name(step)}.part").mkdir(parents=True)
    with trained.exports.around_training():
        left = [path.name for path in (trained.save / FOLDER).iterdir()]
        assert left == ["iter_0000004.part"]
        trained.step()
        assert started.steps == [4]
        started.end_all()
    assert started.steps == [4, 5]


def test_exports_of_steps_that_are_trained_again_are_kept_aside(tmp_path, started):
    trained = Trained(tmp_path / "s")
    trained.checkpoint(2)
    for step in (2, 4):
        (trained.save / FOLDER / iteration_name(step)).mkdir(parents=True)
    with trained.exports.around_training():
        trained.step()
        trained.step(saved=4)
        assert started.steps == [4], "2 is exported already"
        started.end_all()
    assert sorted(path.name for path in (trained.save / FOLDER).iterdir()) == [
        *(iteration_name(step) for step in (2, 4)),
        "untracked-iter_0000004",
    ]


def test_nothing_is_exported_in_a_residual_warmup(tmp_path, started):
    trained = Trained(tmp_path / "s", residual_warmup_steps=1)  # 4 layers
    for step in (2, 4, 6):
        trained.step(saved=step)
        started.end_all()
    assert started.steps == [4, 6]


def test_other_ranks_and_runs_without_training_export_nothing(tmp_path):
    assert Trained(tmp_path / "s", rank=1).exports is None
    assert Trained(tmp_path / "s", skip_train=True).exports is None


def test_the_reason_of_a_silent_failure_is_its_exit_code():
    ended = Export(Path("x"), SimpleNamespace(returncode=3), io.BytesIO(b" \n"), 0.0)
    assert ended.reason() == "exit code 3"
