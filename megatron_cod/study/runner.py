"""Runs the jobs of a study on one machine, several at a time; each resumes where it was stopped."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_cod.adaptations import cpu
from megatron_cod.checkpoint.directory import TRACKER
from megatron_cod.comparison.runs import Show, run_to_end
from megatron_cod.launch.local_run import RunFailed, run_alone
from megatron_cod.study.directory import StudyDirectory
from megatron_cod.study.jobs import Job, flags_of
from megatron_cod.study.scheduler import runnable

Launch = Callable[[list[str], Path, Show, int], None]
"""Runs the pretraining program: (flags, log, progress lines, slot). Raises RunFailed."""


@dataclass(frozen=True)
class Machine:
    """What this machine gives to each of ``jobs`` runs at a time."""

    jobs: int

    @property
    def threads(self) -> int:
        """Of each run: ``OMP_NUM_THREADS``, or its share of the cores."""
        given = os.environ.get("OMP_NUM_THREADS", "")
        return int(given) if given.isdigit() and int(given) else max(1, len(os.sched_getaffinity(0)) // self.jobs)

    def launch(self, flags: list[str], log: Path, show: Show, slot: int) -> None:
        """One process; on a machine with GPUs one GPU for each, in turn."""
        gpu = slot % torch.cuda.device_count() if cpu.has_cuda() else None
        run_alone(flags, log, show, self.threads, gpu)


def run_job(directory: StudyDirectory, job: Job, launch: Launch, show: Show, slot: int = 0) -> None:
    """Train one job to its end, from its newest checkpoint where there is one. RunFailed for more than divergence."""
    folder = directory.root / job.folder
    resumed = (folder / TRACKER).exists()
    if not resumed and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    flags = flags_of(directory.study, job, directory.root, directory.prefix)
    flags += ["--load", str(folder)] if resumed else []
    show(f"{job.name}: {'resumed' if resumed else 'started'}, log in {folder / 'log.txt'}")
    began = time.monotonic()
    diverged = run_to_end(lambda watch: launch(flags, folder / "log.txt", watch, slot), lambda line: None)
    seconds = time.monotonic() - began
    result = directory.finish(job, diverged, seconds)
    if not is_kept(directory, job):
        directory.drop_checkpoints(job)
    what = f"diverged, {result.diverged}" if result.diverged else f"validation loss {result.loss:.4f}"
    show(f"{job.name}: {what}, after {seconds:.0f} s")


def is_kept(directory: StudyDirectory, job: Job) -> bool:
    """Whether a run's last checkpoint is kept: the first final seed's, for the depth diagnostics."""
    return job.seed == directory.study.seeds[0]


class Runner:
    """One start of a study. A run that failed is not tried again in it; one that is stopped continues at the next start."""

    def __init__(self, directory: StudyDirectory, jobs: int, launch: Launch | None, show: Show) -> None:
        self._directory, self._show = directory, show
        self._slots = list(range(jobs))
        self._launch = launch or Machine(jobs).launch
        self._running: dict[Future[None], tuple[Job, int]] = {}
        self.failed: dict[Job, str] = {}

    def run(self) -> None:
        """Until nothing is left that can run."""
        with ThreadPoolExecutor(len(self._slots)) as pool:
            try:
                while self._start(pool) or self._running:
                    self._collect()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _start(self, pool: ThreadPoolExecutor) -> bool:
        busy = {job for job, _ in self._running.values()}
        for job in runnable(self._directory.study, self._directory.results()):
            if not self._slots:
                return True
            if job in busy or job in self.failed:
                continue
            slot = self._slots.pop(0)
            future = pool.submit(run_job, self._directory, job, self._launch, self._show, slot)
            self._running[future] = (job, slot)
        return bool(self._running)

    def _collect(self) -> None:
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        for future in done:
            job, slot = self._running.pop(future)
            self._slots.append(slot)
            try:
                future.result()
            except RunFailed as error:
                line = str(error).removeprefix("error: ")
                self.failed[job] = line
                self._directory.fail(job, line)
                self._show(f"{job.name}: failed, {line}")
