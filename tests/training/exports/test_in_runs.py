"""Runs that export: in the fast tests the process of an export is a stand-in, in the slow ones it is the real one."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from megatron_cod.checkpoint.directory import iterations
from megatron_cod.checkpoint.events import read_events
from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.weights_reader import Source
from tests.conftest import ROOT
from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import PP2

SHORT = ["--train-iters", "4", "--lr-decay-iters", "4", "--eval-iters", "0"]
_STAND_IN = """
import os, sys, time
from megatron_cod.launch.helper_processes import settle
settle()
os.makedirs(sys.argv[2] + ".part", exist_ok=True)
time.sleep(float(sys.argv[1]))
os.rename(sys.argv[2] + ".part", sys.argv[2])
"""


@dataclass(frozen=True)
class StandIns:
    """Put into a rank first: exports take ``seconds`` and write an empty directory. Ends the rank in step ``killed_in``."""

    seconds: float
    killed_in: int | None = None

    def __call__(self) -> None:
        from megatron_cod.training.exports import observer

        observer.start_export = self.start
        if self.killed_in is not None:
            real = observer.Exports.step_begins
            observer.Exports.step_begins = lambda this: self._killed(this, real)

    def start(self, checkpoint: Path, output: Path, _: Sequence[str]):
        from megatron_cod.training.exports.observer import Export

        assert (checkpoint / "metadata.json").is_file()
        command = [sys.executable, "-c", _STAND_IN, str(self.seconds), str(output)]
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
        return Export(checkpoint, process, tempfile.TemporaryFile(), time.monotonic())

    def _killed(self, this, real) -> None:
        real(this)
        if this._run.args.curr_iteration + 1 == self.killed_in:
            part = this._folder / f"{this._running.checkpoint.name}.part"
            while not part.exists():
                time.sleep(0.01)
            (this._folder / "pid").write_text(str(this._running.process.pid))
            os.kill(os.getpid(), signal.SIGKILL)


def saving(folder: Path, *more: str) -> list[str]:
    return ["--save", str(folder), "--load", str(folder), "--save-interval", "1", "--hf-export-interval", "2", *more]


def exports(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "hf").iterdir())


@pytest.mark.slow
def test_a_run_exports_and_waits_for_the_last(tiny, tmp_path):
    flags = [*tiny, *SHORT, *saving(tmp_path, "--keep-last-checkpoints", "1")]
    ended = run_training_ranks(2, [*flags, *PP2], before=StandIns(1.0))
    assert [rank.code for rank in ended] == [0, 0], ended[0].output[-3000:]
    assert exports(tmp_path) == ["iter_0000002", "iter_0000004"]
    assert re.findall(r"^exported (iter_\d+) to", ended[0].output, re.M) == ["iter_0000002", "iter_0000004"]
    assert len(re.findall("waiting up to 30 minutes", ended[0].output)) == 1
    assert list(iterations(tmp_path)) == [4], "retention deletes after the exports"


@pytest.mark.slow
def test_a_killed_run_leaves_a_part_that_the_next_start_resumes(tiny, tmp_path):
    flags = [*tiny, *SHORT, *saving(tmp_path)]
    (killed,) = run_training_ranks(1, flags, before=StandIns(60.0, killed_in=4))
    assert killed.code == -signal.SIGKILL
    pid = int((tmp_path / "hf" / "pid").read_text())
    (tmp_path / "hf" / "pid").unlink()
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid), "the kernel ends the export with its run"
    assert exports(tmp_path) == ["iter_0000002.part"]
    (again,) = run_training_ranks(1, flags, before=StandIns(0.0))
    assert again.code == 0, again.output[-3000:]
    assert exports(tmp_path) == ["iter_0000002", "iter_0000004"]


_NORMAL = """
from megatron_cod.errors import run_tool
from megatron_cod.training.exports import process
process.lower_priority = lambda: None
run_tool(process.main)
"""
FULL_DISK = ("bash", "-c", 'ulimit -f 1; exec "$@"', "bash")


@dataclass(frozen=True)
class Started:
    """Put into a rank first: exports run behind these words, and at a priority that needs no idle machine."""

    words: tuple[str, ...] = ()

    def __call__(self) -> None:
        from megatron_cod.training.exports import observer

        real = subprocess.Popen
        observer.subprocess = SimpleNamespace(DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT, Popen=None)

        def start(command, **more):
            program, dash_m, module, *rest = command
            assert (dash_m, module) == ("-m", "megatron_cod.training.exports.process")
            return real([*self.words, program, "-c", _NORMAL, *rest], **more)

        observer.subprocess.Popen = start


@pytest.mark.slow
def test_the_error_of_an_export_is_one_line(tmp_path):
    words = [sys.executable, "-c", _NORMAL, str(tmp_path / "iter_0000001"), str(tmp_path / "hf")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words += ["--parent", str(os.getpid())]
    ended = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.strip().splitlines()[-1] == f"error: {tmp_path / 'iter_0000001'} does not exist"


@pytest.mark.slow
def test_the_directory_is_that_of_the_command(tiny, tmp_path):
    """Also for two ranks and LNS, whose factors are in the weights."""
    flags = [*tiny, *SHORT, *PP2, *saving(tmp_path, "--norm-scheme", "lns")]
    ended = run_training_ranks(2, flags, before=Started())
    assert [rank.code for rank in ended] == [0, 0], ended[0].output[-3000:]
    assert exports(tmp_path) == ["iter_0000002", "iter_0000004"], ended[0].output
    export_model(ExportJob(tmp_path, tmp_path / "own", verify=False))
    found, own = Source(tmp_path / "hf" / "iter_0000004"), Source(tmp_path / "own")
    assert found.shapes == own.shapes
    assert all(torch.equal(found.read(name), own.read(name)) for name in own.shapes)
    assert not [one for one in read_events(tmp_path) if one["event"] == "export failed"]


@pytest.mark.slow
def test_a_failed_export_ends_no_training(tiny, tmp_path):
    (ended,) = run_training_ranks(1, [*tiny, *SHORT, *saving(tmp_path)], before=Started(FULL_DISK))
    assert ended.code == 0, ended.output[-3000:]
    failed = [one for one in read_events(tmp_path) if one["event"] == "export failed"]
    assert [one["step"] for one in failed] == [2, 4] and "step 4/4" in ended.output
    assert len(re.findall(r"^WARNING: the export of iter_000000\d failed: .+", ended.output, re.M)) == 2
    assert "2 x export failed" in ended.output
