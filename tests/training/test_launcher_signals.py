"""What becomes of the ranks when torchrun gets a signal, or is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from megatron_cod.launch.torchrun_flags import parse
from tests.conftest import ROOT

VARIABLE = "PET_SIGNALS_TO_HANDLE"


def test_sigusr1_is_for_the_ranks_where_nothing_else_is_reported(monkeypatch):
    """Plain torchrun dies of it, and its ranks go on alone."""
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)
    assert "SIGUSR1" in parse(["x.py"]).signals_to_handle.split(",")
    assert parse(["--signals-to-handle", "SIGTERM", "x.py"]).signals_to_handle == "SIGTERM"
    monkeypatch.setenv(VARIABLE, "SIGINT")
    assert parse(["x.py"]).signals_to_handle == "SIGINT"


RANK = """
import os, pathlib, signal, sys, time
from megatron_cod.launch import helper_processes
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGUSR1, lambda *_: ((folder / "told").touch(), os._exit(85)))
helper_processes.die_with_launcher()
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    os._exit(7)  # its ranks are tied to the thread that starts them, which must outlast a restart
(folder / "pid").write_text(f"{os.getpid()}\\n")
time.sleep(60)
"""


def wait_for(what: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


@pytest.mark.slow_except("USR1")
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL], ids=["USR1", "KILL"])
def test_ranks_end_with_torchrun(tmp_path, number):
    (tmp_path / "rank.py").write_text(RANK)
    words = ["--standalone", "--max-restarts", "1", "--monitor-interval", "0.1", "rank.py", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment.pop(VARIABLE, None)
    command = [sys.executable, "-m", "megatron_cod.training.torchrun", *words]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as torchrun:
        place = tmp_path / "pid"
        wait_for(lambda: place.exists() and place.read_text().endswith("\n"))
        rank = psutil.Process(int(place.read_text()))
        try:
            time.sleep(0.3)
            assert rank.is_running()
            torchrun.send_signal(number)
            wait_for(lambda: not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE, 10)
        finally:
            if rank.is_running():
                rank.kill()
        said = torchrun.communicate(timeout=30)[1]
    assert (tmp_path / "told").exists() is (number == signal.SIGUSR1)
    if number == signal.SIGUSR1:
        assert torchrun.returncode == 138
        assert said.splitlines()[-1] == "error: ended by SIGUSR1; the same command resumes from the newest checkpoint"
