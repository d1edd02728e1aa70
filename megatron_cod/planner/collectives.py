"""Seconds of collectives: alpha-beta costs of rings, by where the members of a group stand.

A ring over nodes passes each node border once for every member there, over that member's network card; so it is as fast
as the cards of a node's members together, at most as the links within a node.
"""

from dataclasses import dataclass

from megatron_cod.planner.machine import Machine


@dataclass(frozen=True)
class Group:
    """Ranks that communicate."""

    size: int
    within: int
    """Members in one node."""

    @property
    def nodes(self) -> int:
        return -(-self.size // self.within)


def placed(machine: Machine, size: int, stride: int) -> Group:
    """``size`` ranks, each ``stride`` after the one before it."""
    return Group(size, max(1, min(size, machine.gpus_per_node // stride)))


def ring_rate(machine: Machine, group: Group) -> float:
    """Bytes a second that each link of the ring carries."""
    if group.nodes == 1:
        return machine.node_rate
    across = group.within * machine.network_rate
    return across if group.within == 1 else min(across, machine.node_rate)


def _latency(machine: Machine, group: Group) -> float:
    """Of the steps of one turn."""
    across = group.nodes - 1
    return ((group.size - 1 - across) * machine.node_latency_us + across * machine.network_latency_us) * 1e-6


def gather(machine: Machine, group: Group, size: float) -> float:
    """All-gather to ``size`` bytes on each rank, or reduce-scatter of so many."""
    if group.size == 1 or not size:
        return 0.0
    return (group.size - 1) / group.size * size / ring_rate(machine, group) + _latency(machine, group)


def all_reduce(machine: Machine, group: Group, size: float) -> float:
    """Of ``size`` bytes: a reduce-scatter and an all-gather."""
    return 2 * gather(machine, group, size)


def distinct_nodes(group: Group, copies: int) -> float:
    """How many other nodes ``copies`` equal choices of a node reach, on average, when none is counted twice."""
    return (group.nodes - 1) * (1 - (1 - 1 / group.nodes) ** copies)


def all_to_all(machine: Machine, group: Group, size: float, copies: int = 0) -> float:
    """``size`` bytes of each rank, equal parts to all: within the node and across it at the same time.

    copies: of a row, to ranks of its own each, where a row crosses to a node only once and is copied there (DeepEP); 0:
    each copy crosses for itself.
    """
    if group.size == 1 or not size:
        return 0.0
    near, far = (group.within - 1) / group.size * size, (group.size - group.within) / group.size * size
    if copies:
        near, far = near + far * (group.within - 1) / group.within, distinct_nodes(group, copies) / copies * size
    steps = machine.network_latency_us if group.nodes > 1 else machine.node_latency_us
    return max(near / machine.node_rate, far / machine.network_rate) + steps * 1e-6


def send(machine: Machine, stride: int, size: float) -> float:
    """``size`` bytes to the rank ``stride`` further on."""
    if stride >= machine.gpus_per_node:
        return size / machine.network_rate + machine.network_latency_us * 1e-6
    return size / machine.node_rate + machine.node_latency_us * 1e-6
