"""Pretrain: ``torchrun --nproc-per-node N -m megatron_cod.training.pretrain --recipe FILE [any Megatron flag]``.

Thin on purpose. Megatron's checkpoint writer starts helper processes that import the main module again: what is imported
here, each of them pays for.
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


def main() -> None:
    """Run the training; see ``run.py``."""
    from megatron_cod.training import run

    run.main()


if __name__ == "__mp_main__":  # the name a multiprocessing helper imports this module under
    die_with_parent()
    leave_signals_to_parent()
elif __name__ == "__main__":
    main()
