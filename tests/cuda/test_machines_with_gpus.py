"""What the tests themselves do on a machine with a GPU: fork, and keep to CPU processes unless GPUs are asked for."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.gpu_emulation.__main__ import SWITCH

FORKED = """
import os, torch
assert torch.cuda.is_available() and torch.cuda.device_count()
if os.fork() == 0:
    torch.ones(1, device="cuda")
    os._exit(0)
os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
FAILED_FORK = ("Cannot re-initialize CUDA in forked subprocess", "initialization error", "emulated CUDA error 3")
"""torch's message, or the driver's where torch has not noticed the fork."""


@pytest.mark.parametrize("by_nvml", [True, False], ids=["by NVML", "by the driver"])
@pytest.mark.slow
def test_a_fork_has_a_device_unless_the_driver_was_started(by_nvml):
    """What tests/conftest.py sets for the fork server; without it the driver has started in the server."""
    environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": str(int(by_nvml))}
    done = subprocess.run([sys.executable, "-c", FORKED], env=environment, capture_output=True, text=True)
    assert (done.returncode == 0) == by_nvml, done.stderr
    assert by_nvml or any(words in done.stderr for words in FAILED_FORK), done.stderr


@pytest.mark.parametrize("marks", ["gpu", "not slow"])
@pytest.mark.slow
def test_gpus_are_hidden_from_tests_of_cpu_processes(marks):
    name = "test_install_does_nothing_on_a_gpu_machine"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        marks,
        "tests/adaptations/test_cpu.py",
        "-k",
        name,
    ]
    without = {key: value for key, value in os.environ.items() if key not in (SWITCH, "CUDA_VISIBLE_DEVICES")}
    done = subprocess.run(command, cwd=ROOT, env=without, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert ("1 passed" in done.stdout) == (marks == "gpu"), done.stdout
    assert ("hidden: pytest -m gpu" in done.stdout) == (marks != "gpu"), done.stdout
