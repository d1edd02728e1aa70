"""SIGKILL of all ranks at a chosen moment of a save, without patching anything: Python's audit hooks see every open,
mkdir, rename and remove before it happens."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from megatron_cod.analysis.metrics import TRAIN_LOSS, read_metrics
from megatron_cod.checkpoint.directory import TRACKER, check_files, iteration_name, latest_checkpoint
from tests.distributed.launch import Ended, run_training_ranks

# Stage -> the audit event that the kill comes before, and the path it is about; {} is the iteration's directory.
STAGES = {
    "before its directory": ("os.mkdir", "{}$"),
    "before its data": ("write", r"{}/__\d+_\d+\.distcp$"),
    "data without index": ("write", r"{}/\.metadata"),
    "index without metadata.json": ("write", r"{}/metadata\.json$"),
    "before the tracker": ("write", TRACKER),
    "empty tracker": ("write", TRACKER),
    "before a deletion": ("os.rename", r"iter_\d+$"),
    "in a deletion": ("os.remove", ""),
}


def _kill_all(pids: Path) -> None:
    ranks = [int(path.name) for path in pids.iterdir()]
    # The helpers of Megatron's checkpoint writer too: they end with their rank under torchrun (helper_processes.py).
    helpers = [child.pid for rank in ranks for child in psutil.Process(rank).children(recursive=True)]
    for pid in [*helpers, *(rank for rank in ranks if rank != os.getpid()), os.getpid()]:
        os.kill(pid, signal.SIGKILL)


def arm(stage: str, iteration: int, pids: Path) -> None:
    """In a rank, before training: kill all ranks at ``stage`` of the save of ``iteration``.

    stage: a key of STAGES, or 'random SEED' for a moment up to 0.1 s after the save's first file.
    """
    (pids / str(os.getpid())).touch()
    name = iteration_name(iteration)
    event, pattern = STAGES.get(stage, STAGES["before its data"])
    wanted = re.compile(pattern.format(name))
    begun, deleting, done = False, 0, False

    def hook(what: str, arguments: tuple[Any, ...]) -> None:
        nonlocal begun, deleting, done
        if done or what not in ("open", "os.mkdir", "os.rename", "os.remove", "shutil.rmtree"):
            return
        path = str(arguments[0])
        if what == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            what = "write"
        begun = begun or name in path
        if what == "shutil.rmtree":
            deleting = 1
        elif what == "os.remove" and deleting:
            deleting += 1  # the second file of a directory: one is gone
        if not begun or what != event or not wanted.search(path) or (what == "os.remove" and deleting < 3):
            return
        done = True
        if stage == "empty tracker":
            os.truncate(path, 0)
        if stage in STAGES:
            _kill_all(pids)
        else:
            threading.Timer(random.Random(stage).uniform(0.0, 0.1), _kill_all, [pids]).start()

    sys.addaudithook(hook)


def run_until_killed(world: int, flags: list[str], stage: str, iteration: int, pids: Path) -> list[Ended]:
    """Train until the kill. pids: an empty folder for this run alone."""
    pids.mkdir(parents=True)
    before: Callable[[], None] = partial(arm, stage, iteration, pids)
    ended = run_training_ranks(world, flags, before=before)
    assert any(rank.code == -signal.SIGKILL for rank in ended), ended[0].output[-3000:]
    return ended


def kill_and_go_on(recipe: list[str], folder: Path, victim: int) -> None:
    """A run of two stages under torchrun loses a rank, the other ends, and another run resumes from the checkpoint."""
    flags = [
        *recipe,
        *("--pipeline-model-parallel-size", "2", "--train-iters", "100000", "--eval-iters", "0"),
        *("--save", str(folder), "--save-interval", "5"),
    ]
    launcher = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "megatron_cod.training.pretrain", *flags),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / "latest_checkpointed_iteration.txt").exists():
            assert time.monotonic() < deadline and launcher.poll() is None, "no checkpoint came"
            time.sleep(0.1)
        family = psutil.Process(launcher.pid).children(recursive=True)
        ranks = {int(process.environ()["RANK"]): process for process in family if process.ppid() == launcher.pid}
        assert set(ranks) == {0, 1}
        ranks[victim].send_signal(signal.SIGKILL)
        killed_at = time.monotonic()
        _, errors = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert launcher.returncode != 0
    assert "SIGKILL" in errors or "-9" in errors
    assert time.monotonic() - killed_at < 60
    # Nothing is left behind: no rank, no data loader worker, no helper of the checkpoint writer.
    gone_by = time.monotonic() + 20
    while left := [process.pid for process in family if process.is_running() and process.status() != "zombie"]:
        assert time.monotonic() < gone_by, f"still running: {left}"
        time.sleep(0.2)

    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    check_files(checkpoint)
    step = int(checkpoint.name.removeprefix("iter_"))
    again = [*flags, "--load", str(folder), "--exit-interval", "5"]
    ended = run_training_ranks(2, again)
    assert [rank.code for rank in ended] == [0, 0], ended[0].output[-2000:]
    assert read_metrics(folder / "metrics.jsonl").last_step() == step + 5
    assert f"step {step + 1:>6}/100000" in ended[0].output
    assert step + 1 in read_metrics(folder / "metrics.jsonl").scalars[TRAIN_LOSS]
