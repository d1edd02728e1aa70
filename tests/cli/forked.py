"""Run the command in a process forked from one that has Megatron imported, as ``tests/programs.py`` does with tools."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.distributed.launch import FORKS


def _become(_python: str, words: list[str]) -> None:
    """In place of ``os.execv``: the module of ``python -m MODULE WORDS`` in this process."""
    sys.argv = [words[2], *words[3:]]
    runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    sys.exit(0)


def _run(words: list[str], cwd: str, out: str, err: str) -> None:
    for number, name in ((1, out), (2, err)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    multiprocessing.set_start_method("fork", force=True)
    sys.argv = ["megatron-cod", *words]
    os.execv = _become  # type: ignore[assignment]
    from megatron_cod.cli.main import main

    main()


def run_command(*words: object, cwd: Path, timeout: float = 240.0) -> subprocess.CompletedProcess[str]:
    """``megatron-cod WORDS`` in a folder; AssertionError after ``timeout`` seconds."""
    arguments = [str(word) for word in words]
    with tempfile.TemporaryDirectory() as folder:
        out, err = f"{folder}/out", f"{folder}/err"
        process = FORKS.Process(target=_run, args=(arguments, str(cwd), out, err))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise AssertionError(f"{arguments}: still running after {timeout} s")
        texts = [Path(file).read_text() for file in (out, err)]
        return subprocess.CompletedProcess(arguments, process.exitcode, *texts)
