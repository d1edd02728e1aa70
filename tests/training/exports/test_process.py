"""The process of an export: priority, its end with the training. What it writes: ``test_in_runs.py``."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_cod.training.exports import process
from tests.conftest import ROOT

PROCESS = [sys.executable, "-m", "megatron_cod.training.exports.process"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*PROCESS, *words], capture_output=True, text=True, env=environment, timeout=60)


def test_it_does_nothing_for_a_training_that_is_gone(tmp_path):
    ended = run(str(tmp_path / "iter_0000001"), str(tmp_path / "hf"), "--parent", "1")
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "")
    assert not (tmp_path / "hf").exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="priorities of Linux")
def test_it_runs_only_while_nobody_else_does():
    child = os.fork()
    if not child:
        os.setsid()
        process.lower_priority()
        group = Path("/proc/self/autogroup")
        if group.is_file() and not group.read_text().endswith("nice 19\n"):
            os._exit(2)
        nice, policy = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)
        disk = process.psutil.Process().ionice().ioclass
        os._exit(0 if (nice, policy, disk) == (19, os.SCHED_IDLE, process.psutil.IOPRIO_CLASS_IDLE) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


_PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([*sys.argv[1:], "--parent", str(os.getpid())])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl of Linux")
def test_it_ends_with_a_training_that_is_killed(tmp_path):
    words = [sys.executable, "-c", _PARENT, *PROCESS, str(tmp_path / "iter_0000001"), str(tmp_path / "hf")]
    training = subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert training.stdout is not None
    export = psutil.Process(int(training.stdout.readline()))
    while export.nice() != 19:  # from then on the kernel knows
        time.sleep(0.02)
    training.kill()
    training.wait()
    psutil.wait_procs([export], timeout=5)
    assert not export.is_running() or export.status() == psutil.STATUS_ZOMBIE
