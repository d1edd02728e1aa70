"""Commands of the README and examples, and how tests run them."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.conftest import ROOT


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def tool(name: str) -> str:
    found = Path(sys.executable).with_name(name)
    assert found.is_file(), f"{name} is in the dev extras"
    return str(found)


TOY = ["--num-layers", "4", "--hidden-size", "32", "--ffn-hidden-size", "64", "--seq-length", "32", "--eval-iters", "1"]


def run(command: list[str], cwd: Path, expect: int = 0, timeout: float = 300) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=environment)
    assert done.returncode == expect, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def readme_commands() -> list[str]:
    """The indented commands of the README, continued lines joined."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def launch_flags() -> set[str]:
    """Every flag of training, fine-tuning and evaluation."""
    from megatron_cod.training.evaluation.flags import PROGRAM
    from megatron_cod.training.fine_tuning.task import task
    from megatron_cod.training.flags.parser import build_parser
    from megatron_cod.training.pretraining import TASK

    programs = (TASK, task(), PROGRAM)
    return {flag for one in programs for action in build_parser(one)._actions for flag in action.option_strings}
