"""For the processes that Megatron's checkpoint writer starts: each imports the main module again.

What an entry imports, each of them pays for; so entries import this and nothing else.
"""

import ctypes
import signal
import sys


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends (Linux): a killed rank must not leave helpers behind."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG in linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def leave_signals_to_parent() -> None:
    """Ignore what tells a run to save and stop: Slurm signals every process of a step, and the save needs its helpers."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def settle() -> None:
    """Both."""
    die_with_parent()
    leave_signals_to_parent()
