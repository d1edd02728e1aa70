"""Bandwidth of all_reduce: over all ranks, within each machine, and between neighbouring machines.

As nccl-tests define it: algorithm bandwidth is the buffer's size over the time of one call, bus bandwidth is that times
2 (n - 1) / n, what the slowest link carries, for any number n of ranks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from megatron_cod.preflight.check import Answers, Here
from megatron_cod.preflight.findings import FAIL, OK, SKIP, WARN, Finding, Outcome
from megatron_cod.preflight.member_channel import Member

_MIB = 1 << 20
_MEASURE_SECONDS = 1.0
_MOST_CALLS = 20
_COLLECTIVE_SECONDS = 60.0
_OUTLIER = 0.5
"""A machine is slow when even its best pair has less than this share of the best of all."""


def bus_factor(ranks: int) -> float:
    """Bus bandwidth over algorithm bandwidth."""
    return 2 * (ranks - 1) / ranks


def pair_rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """Each machine with the next, in a ring, in rounds with no machine twice; none for fewer than 3, who are one pair."""
    if nodes < 3:
        return []
    even = [(one, one + 1) for one in range(0, nodes - 1, 2)]
    odd = [(one, one + 1) for one in range(1, nodes - 1, 2)]
    last = (nodes - 1, 0)
    return [even, [*odd, last]] if nodes % 2 == 0 else [even, odd, [last]]


def partitions(members: Sequence[Member]) -> dict[str, list[list[int]]]:
    """Name -> groups of positions in ``members`` that measure at one time; each position is in one group of each."""
    nodes: dict[str, list[int]] = {}
    for position, member in enumerate(members):
        nodes.setdefault(member.node, []).append(position)
    groups = list(nodes.values())
    found = {"all": [list(range(len(members)))]}
    if len(groups) > 1 and max(map(len, groups)) > 1:
        found["within"] = groups
    for number, pairs in enumerate(pair_rounds(len(groups))):
        alone = set(range(len(groups))) - {one for pair in pairs for one in pair}
        found[f"pairs {number}"] = [groups[a] + groups[b] for a, b in pairs] + [groups[one] for one in sorted(alone)]
    return found


def is_measured(name: str, group: Sequence[Member]) -> bool:
    """Whether a group has something to measure: not one rank alone, nor a machine that sits a round of pairs out."""
    return len(group) > 1 and (not name.startswith("pairs") or len(_nodes(group)) > 1)


_LATENCY = " latency"
"""Behind the name of a partition: the seconds of an all_reduce of one number."""


def _seconds(group: Any, buffer: torch.Tensor) -> float:
    """Seconds of one all_reduce, the same figure on all ranks of the group: the slowest rank's."""

    def finished() -> None:
        if buffer.is_cuda:
            torch.cuda.synchronize()

    def timed(calls: int) -> float:
        dist.barrier(group)
        finished()
        begun = time.perf_counter()
        for _ in range(calls):
            dist.all_reduce(buffer, group=group)
        finished()
        taken = torch.tensor([(time.perf_counter() - begun) / calls], dtype=torch.float64, device=buffer.device)
        dist.all_reduce(taken, op=dist.ReduceOp.MAX, group=group)
        return float(taken)

    timed(1)  # connections are opened
    once = timed(1)
    return timed(max(1, min(_MOST_CALLS, int(_MEASURE_SECONDS / once))))


def collect(here: Here) -> dict[str, float]:
    """Name of a partition -> seconds of one all_reduce in this rank's group of it; with " latency", of one number."""
    meeting, backend = here.meeting, here.shared["backend"]
    if len(meeting.members) < 2:
        return {}
    if backend == "nccl":
        torch.cuda.set_device(meeting.me.local % torch.cuda.device_count())
    position = meeting.members.index(meeting.me)
    seconds = here.settings.check_timeout or _COLLECTIVE_SECONDS
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("bandwidth", meeting.connection(seconds)),
        rank=position,
        world_size=len(meeting.members),
        timeout=timedelta(seconds=seconds),
    )
    device = "cuda" if backend == "nccl" else "cpu"
    buffer = torch.zeros(here.settings.size_mib * _MIB // 4, dtype=torch.float32, device=device)
    found = {}
    for name, groups in partitions(meeting.members).items():
        group, _ = dist.new_subgroups_by_enumeration(groups)
        ranks = next(one for one in groups if position in one)
        if is_measured(name, [meeting.members[one] for one in ranks]):
            found[name] = _seconds(group, buffer)
            found[name + _LATENCY] = _seconds(group, buffer[:1])
    dist.destroy_process_group()
    return found


def compare(answers: Answers, here: Here) -> Outcome:
    """Fails below ``--min-bandwidth`` (bus, GB/s); warns of a machine whose best pair is below half of the best of all."""
    members, size = list(answers), here.settings.size_mib * _MIB
    if len(members) < 2:
        return Outcome(
            [Finding(one.node, "bandwidth", SKIP, "one process") for one in members], "one process: not measured"
        )
    figures: list[dict[str, Any]] = []
    for name, groups in partitions(members).items():
        for group in groups:
            if not is_measured(name, [members[one] for one in group]):
                continue
            seconds = max(answers[members[one]][name] for one in group)
            nodes = list(dict.fromkeys(members[one].node for one in group))
            kind = "within" if len(nodes) == 1 else "all" if name == "all" else "pair"
            algorithm = size / seconds / 1e9
            bus = algorithm * bus_factor(len(group))
            latency = max(answers[members[one]].get(name + _LATENCY, 0.0) for one in group)
            figure = {"what": kind, "nodes": nodes, "ranks": len(group), "algorithm": algorithm, "bus": bus}
            figures.append(figure | {"seconds": seconds, "latency": latency, "bytes": size})
    between = [one for one in figures if one["what"] == "pair"] or [one for one in figures if len(one["nodes"]) > 1]
    best = {
        node: max((one["bus"] for one in between if node in one["nodes"]), default=None) for node in _nodes(members)
    }
    findings = [_finding(node, bus, max(filter(None, best.values()), default=0.0), here) for node, bus in best.items()]
    return Outcome(findings, _line(figures, between, best, here), {"all_reduce": figures})


def _nodes(members: Sequence[Member]) -> list[str]:
    return list(dict.fromkeys(member.node for member in members))


def _finding(node: str, bus: float | None, best: float, here: Here) -> Finding:
    if bus is None:
        return Finding(node, "bandwidth", OK, "one machine")
    least = here.settings.min_bandwidth
    text = f"best all_reduce with a neighbour {bus:.3f} GB/s bus"
    if least and bus < least:
        hint = "a slow cable or port, another interface (INTERFACE), or traffic of others"
        return Finding(node, "bandwidth", FAIL, f"{text}, below --min-bandwidth {least:g}", hint)
    if bus < _OUTLIER * best:
        return Finding(
            node, "bandwidth", WARN, f"{text}, others reach {best:.3f}", "every step waits for the slowest machine"
        )
    return Finding(node, "bandwidth", OK, text)


def _line(
    figures: list[dict[str, Any]], between: list[dict[str, Any]], best: dict[str, float | None], here: Here
) -> str:
    whole = figures[0]
    parts = [
        f"all_reduce of {here.settings.size_mib} MiB over {here.shared['backend']}, GB/s algorithm / bus: "
        f"all {whole['ranks']} ranks {whole['algorithm']:.3f} / {whole['bus']:.3f}"
    ]
    within = [one for one in figures if one["what"] == "within"]
    if within and len(best) > 1:
        least = min(within, key=lambda one: one["bus"])
        parts.append(f"within a machine at least {least['algorithm']:.3f} / {least['bus']:.3f} ({least['nodes'][0]})")
    if len(between) > 1:
        least = min(between, key=lambda one: one["bus"])
        parts.append(f"slowest pair {' and '.join(least['nodes'])} {least['algorithm']:.3f} / {least['bus']:.3f}")
        parts.append(f"slowest machine {min(best, key=lambda node: best[node] or 0.0)}")
    return "; ".join(parts)
