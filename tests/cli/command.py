"""Run the command as its users do: in a folder of theirs, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def megatron_cod(*words: object, cwd: Path, timeout: float = 240, **variables: str) -> subprocess.CompletedProcess[str]:
    """``megatron-cod WORDS``, without a launcher's variables."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launcher}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
    command = [sys.executable, "-m", "megatron_cod", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
