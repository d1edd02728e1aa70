"""The place of a preflight process (machine, number), from Slurm, torchrun or its flags."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_cod.launch.network import is_here


@dataclass(frozen=True)
class Place:
    """One process among those that were started."""

    node: str
    """The machine's name, as the table has it."""
    local: int
    """Which process of its machine."""
    world: int
    """Processes in all."""
    is_head: bool
    """Whether this process holds the meeting and prints the table."""
    expected: tuple[str, ...]
    """Names of the machines that should come, where they are known."""


def slurm_names(node_list: str) -> tuple[str, ...]:
    """The names in Slurm's short form (``node[1-4]``); none where scontrol cannot be asked."""
    try:
        done = subprocess.run(["scontrol", "show", "hostnames", node_list], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(done.stdout.split())


def find_place(environment: Mapping[str, str], head: str, nodes: int, processes: int) -> Place:
    """This process's place. nodes, processes (a node): for a start without a launcher. UserError for an unknown HEAD."""
    node = environment.get("SLURMD_NODENAME") or socket.gethostname()
    if "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        names = slurm_names(environment.get("SLURM_STEP_NODELIST", ""))
        rank, world = int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"])
        return Place(node, int(environment["SLURM_LOCALID"]), world, rank == 0, names)
    if "RANK" in environment:
        rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        return Place(node, int(environment["LOCAL_RANK"]), world, rank == 0, ())
    local = int(environment.get("LOCAL_RANK", "0"))
    return Place(node, local, nodes * processes, local == 0 and is_here(head), ())
