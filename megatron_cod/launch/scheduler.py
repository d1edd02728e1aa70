"""What the job scheduler puts into the environment: the job, its restarts, this machine's name."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


def restarts() -> int:
    """How often the job was started again, by Slurm or torchrun; 0 without either."""
    counts = (os.environ.get(name, "0") for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    return max(int(count) for count in counts if count.isdigit())


def this_host() -> str:
    """The machine's name as its scheduler has it, else its own."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def slurm_job(environment: Mapping[str, str] = os.environ) -> str | None:
    """The job's name to Slurm: of a task of an array ARRAY_TASK, since one task has the array's own number.

    A task that lacks the array's number, as where a script sets the other, is its job.
    """
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID") or None
