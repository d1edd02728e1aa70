"""Starts exports while a run trains (``--hf-export-interval``). Lives on rank 0; no step waits for an export."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from megatron_cod.checkpoint.directory import RELEASE, TRACKER, iterations, read_tracker
from megatron_cod.checkpoint.retention import UNTRACKED
from megatron_cod.common.amounts import format_duration
from megatron_cod.console import log_to_file
from megatron_cod.training.exports.checks import first_step
from megatron_cod.training.loop.observers import Observer, Run

FOLDER = "hf"
"""In ``--save``, with a directory per exported checkpoint, which has the name of the checkpoint."""
PART = ".part"
SECONDS_AT_THE_END = 1800.0
"""How long a run that has trained all its steps waits for its last exports."""


@dataclass
class Export:
    """An export that runs in a process of its own."""

    checkpoint: Path
    process: subprocess.Popen[bytes]
    printed: IO[bytes]
    begun: float

    def text(self) -> str:
        """What it printed."""
        self.printed.seek(0)
        return self.printed.read().decode(errors="replace")

    def reason(self) -> str:
        """Why it failed, on one line."""
        code, lines = self.process.returncode, self.text().strip().splitlines()
        if code < 0:
            return f"it was ended by signal {-code}"
        return lines[-1].removeprefix("error: ")[:300] if lines else f"exit code {code}"


def start_export(checkpoint: Path, output: Path, modules: Sequence[str]) -> Export:
    """Begin to export. Called by the main thread: the process ends with the thread that started it."""
    command = [sys.executable, "-m", "megatron_cod.training.exports.process", str(checkpoint), str(output)]
    imports = ["--import", *modules] if modules else []
    printed = tempfile.TemporaryFile()  # noqa: SIM115 - kept until the process has ended
    process = subprocess.Popen(
        [*command, "--parent", str(os.getpid()), *imports],
        stdin=subprocess.DEVNULL,
        stdout=printed,
        stderr=subprocess.STDOUT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C is for the training, which then ends it
    )
    return Export(checkpoint, process, printed, time.monotonic())


class Exports(Observer):
    """Exports each checkpoint of a multiple of N steps, one at a time, and the last one of a run that trained to its end.

    Where exports are slower than their interval, one waits, and a newer checkpoint takes its place. Checkpoints that are
    read, or wait, are in ``Run.in_use``, which retention leaves. After a kill the newest export that is due is resumed at
    the next start, and what other interrupted ones left is removed.
    """

    def __init__(self, run: Run) -> None:
        args = run.args
        assert args.save is not None and args.hf_export_interval is not None
        self._run, self._save = run, Path(args.save)
        self._folder = self._save / FOLDER
        self._every, self._first = args.hf_export_interval, first_step(args)
        self._seen: Any = None
        self._offered: Path | None = None
        self._next: Path | None = None
        self._running: Export | None = None

    @classmethod
    def of(cls, run: Run) -> Exports | None:
        """On rank 0 of a run that trains, where ``--hf-export-interval`` asks for it."""
        args = run.args
        asked = args.save and args.hf_export_interval and not args.skip_train and args.rank == 0
        return cls(run) if asked else None

    def step_begins(self) -> None:
        """Look whether the step before saved, and whether an export has ended."""
        try:
            now = os.stat(self._save / TRACKER)
        except OSError:
            now = None
        if now and (now.st_mtime_ns, now.st_size) != self._seen:
            self._seen = (now.st_mtime_ns, now.st_size)
            self._offer(self._newest())
        self._advance()

    def _tracked(self) -> int:
        """The newest checkpoint's step; -1 without one."""
        try:
            text = read_tracker(self._save)
        except (OSError, ValueError):
            return -1
        return int(text) if text and text != RELEASE else -1

    def _newest(self, last: bool = False) -> Path | None:
        """The newest checkpoint that is to be exported. last: it is the run's last, which is."""
        tracked = self._tracked()
        due = {
            step: path
            for step, path in iterations(self._save).items()
            if self._first <= step <= tracked and (step % self._every == 0 or (last and step == tracked))
        }
        return due[max(due)] if due else None

    def _offer(self, checkpoint: Path | None) -> None:
        """Have a checkpoint exported next, unless it is already."""
        if checkpoint is None or checkpoint == self._offered or (self._folder / checkpoint.name).exists():
            return
        if self._next is not None:
            self._run.log(f"{self._next.name} is not exported: exports take longer than {self._every} steps")
        self._offered = self._next = checkpoint
        self._hold()

    def _hold(self) -> None:
        """Tell retention what is read."""
        self._run.in_use.clear()
        self._run.in_use.update(path for path in (self._next, self._running and self._running.checkpoint) if path)

    def _advance(self) -> None:
        """Report an export that has ended, and start the next one."""
        if self._running is not None and self._running.process.poll() is not None:
            self._report(self._running)
            self._running = None
            self._hold()
        if self._running is None and self._next is not None:
            checkpoint, self._next = self._next, None
            try:
                modules = self._run.args.import_modules
                self._running = start_export(checkpoint, self._folder / checkpoint.name, modules)
            except OSError as error:
                self._failed(checkpoint, str(error))
            self._hold()

    def _report(self, ended: Export) -> None:
        log_to_file(ended.text().rstrip())
        if ended.process.returncode:
            self._failed(ended.checkpoint, ended.reason())
            return
        took = format_duration(time.monotonic() - ended.begun)
        self._run.log(f"exported {ended.checkpoint.name} to {self._folder / ended.checkpoint.name} in {took}")

    def _failed(self, checkpoint: Path, why: str) -> None:
        self._run.log(f"WARNING: the export of {checkpoint.name} failed: {why}")
        self._run.events.add("export failed", step=int(checkpoint.name.removeprefix("iter_")), why=why)

    @contextmanager
    def around_training(self) -> Iterator[None]:
        """Before: what an earlier run left. After: wait where all steps are trained; else the next start resumes."""
        self._clean()
        try:
            yield
            self._offer(self._newest(last=True))
            self._advance()
            self._wait()
        finally:
            self._abandon()

    def _clean(self) -> None:
        newest = self._newest()
        for part in self._folder.glob(f"iter_*{PART}"):
            if newest is None or part.name != newest.name + PART:
                shutil.rmtree(part)
                self._run.log(f"removed an interrupted export: {part}")
        for step, path in iterations(self._folder).items():
            if (
                step > self._tracked()
            ):  # of steps that are trained again, after a rewind or from a damaged checkpoint on
                aside = path.with_name(UNTRACKED + path.name)
                if aside.exists():
                    shutil.rmtree(aside)
                path.rename(aside)
                self._run.log(f"{path} is newer than the newest checkpoint: kept as {aside.name}")

    def _wait(self) -> None:
        if self._running is None:
            return
        minutes = SECONDS_AT_THE_END / 60
        self._run.log(f"waiting up to {minutes:.0f} minutes for the export of {self._running.checkpoint.name}")
        deadline = time.monotonic() + SECONDS_AT_THE_END
        with _sigterm() as received:
            while self._running is not None and time.monotonic() < deadline and not received:
                time.sleep(0.1)
                self._advance()

    def _abandon(self) -> None:
        """End an export that runs still: its files stay, and the next start resumes it."""
        if self._running is not None:
            self._running.process.kill()
            self._running.process.wait()
            self._run.log(f"the export of {self._running.checkpoint.name} is not finished: the next start resumes it")
        self._running = self._next = None
        self._hold()


@contextmanager
def _sigterm() -> Iterator[list[int]]:
    """The SIGTERMs that come: Megatron's handler, which is there still, would only note them."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)
