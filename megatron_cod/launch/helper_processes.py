"""Processes that end with the one that started them: a rank, and those that Megatron's checkpoint writer starts.

Each of the latter imports the main module again. What an entry imports, each of them pays for; so entries import this and
nothing else.
"""

import ctypes
import os
import signal
import sys

LAUNCHER = "MEGATRON_COD_LAUNCHER"
"""The environment variable in which our torchrun passes its process id to its ranks."""


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends (Linux): a killed rank must not leave helpers behind."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG in linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def die_with_launcher() -> None:
    """For a rank that our torchrun started: one that is killed can end none of its ranks itself."""
    if os.environ.get(LAUNCHER) == str(os.getppid()):
        die_with_parent()


def leave_signals_to_parent() -> None:
    """Ignore the signals to save and stop: Slurm signals every process of a step, and the save needs its helpers."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def settle() -> None:
    """What a helper of a save does first."""
    die_with_parent()
    leave_signals_to_parent()
