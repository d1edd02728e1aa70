"""Run a program of tools/ in a process forked from one that has torch and Megatron imported: seconds sooner.

What is lost is what those imports print. Where that matters, or what a shell does, a test starts the program itself.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import ROOT
from tests.distributed.launch import FORKS


def _run(path: str, arguments: list[str], out: str, err: str) -> None:
    # The exit code and a traceback are what multiprocessing makes of SystemExit and other exceptions, as Python does.
    for number, name in ((1, out), (2, err)):
        file = os.open(name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.chdir(ROOT)
    multiprocessing.set_start_method("fork", force=True)
    sys.argv = [path, *arguments]
    sys.path.insert(0, str(Path(path).parent))
    runpy.run_path(path, run_name="__main__")


def run_program(name: str, *arguments: object, timeout: float = 240.0) -> subprocess.CompletedProcess[str]:
    """``python tools/<name> <arguments>`` in the repository; AssertionError after ``timeout`` seconds."""
    path = str(ROOT / "tools" / name)
    words = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        out, err = f"{folder}/out", f"{folder}/err"
        process = FORKS.Process(target=_run, args=(path, words, out, err))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise AssertionError(f"{name}: still running after {timeout} s\n{Path(err).read_text()[-2000:]}")
        texts = (Path(file).read_text() for file in (out, err))
        return subprocess.CompletedProcess([path, *words], process.exitcode, *texts)
