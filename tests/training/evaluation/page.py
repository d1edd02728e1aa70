"""The code blocks of a page, and how they are run."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def blocks() -> list[str]:
    return re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "evaluation.md").read_text(), re.DOTALL)


def run_block(block: str, home: Path, **more: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **more}
    done = subprocess.run(["bash", "-e"], input=block, text=True, cwd=home, env=environment, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout
