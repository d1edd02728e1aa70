"""SIGKILL of one rank in mid-run, under the real launcher: the others end within a minute, what was saved stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_cod.analysis.metrics import TRAIN_LOSS, read_metrics
from megatron_cod.checkpoint.directory import check_files, latest_checkpoint
from tests.distributed.launch import run_training_ranks


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.slow_except("1")
def test_killing_a_rank_ends_the_run_and_loses_nothing(tiny, tmp_path, victim):
    kill_and_go_on(tiny, tmp_path / "run", victim)


def kill_and_go_on(recipe: list[str], folder: Path, victim: int) -> None:
    """A run of two stages under torchrun loses a rank, the other ends, and another run goes on from the checkpoint."""
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
