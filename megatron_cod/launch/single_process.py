"""A job of one process, which no launcher has started."""

from __future__ import annotations

import os

from megatron_cod.errors import UserError

_RANKS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
# Nobody else joins, so any port will do: the kernel gives a free one. No launcher holds a store there.
ENVIRONMENT = {**_RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
"""The variables that a launcher would set."""
_TASKS = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec"}
"""In which variable a launcher that sets none of those counts its processes."""


def launch_alone() -> None:
    """Make this process the only rank of a job, as the launcher's environment would; for tools that start Megatron."""
    os.environ |= ENVIRONMENT
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)


def launch_unless_launched() -> None:
    """The same where no launcher has set any of its variables; otherwise nothing.

    Raises:
        UserError: where srun or mpirun has started several processes without them, each of which would be a run.
    """
    if any(name in os.environ for name in ENVIRONMENT):
        return
    for name, launcher in _TASKS.items():
        count = os.environ.get(name, "1")
        if count != "1":
            raise UserError(
                f"{launcher} started {count} processes without RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; "
                "take a script of megatron-cod init, which sets them"
            )
    launch_alone()
