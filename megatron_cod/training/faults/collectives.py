"""The state of a rank's collectives, from torch's flight recorder; and from those of all ranks, who waits for whom.

Over NCCL no line of Python waits for other ranks: the host runs ahead, and its main thread stops wherever it next needs a
value from the device. The recorder (on by default, the last 2000 entries) knows what was begun and is not finished, over
gloo as over NCCL. Of messages between two ranks it knows less (none over gloo, none in batches, which pipelines send, in
new versions of torch): there the line of Python that waits decides. What a CUDA graph replays it does not record.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch._C import _distributed_c10d as c10d
from torch.distributed import distributed_c10d

_SAME_SIZE = (
    *("all_reduce", "allreduce", "reduce", "broadcast", "barrier", "into_tensor", "scatter_tensor"),
    *("_base", "_coalesced"),
)
"""Ends of the names of collectives to which all ranks bring tensors of one size and type."""


@dataclass(frozen=True)
class Begun:
    """The collective of a group that a rank is at: the oldest unfinished one, else the newest."""

    number: int
    """Counts the collectives of the group on this rank, as ``newest`` does."""
    newest: int
    what: str
    alike: str
    """What has to be equal on all ranks."""
    finished: bool


@dataclass(frozen=True)
class Collectives:
    """Of one rank, as its heartbeat carries it."""

    groups: dict[str, Begun] = field(default_factory=dict)
    members: dict[str, list[int]] = field(default_factory=dict)
    """Ranks of the groups with an unfinished collective."""
    messages: list[list[int]] = field(default_factory=list)
    """Unfinished: the ranks [from, to]."""
    oldest: float = 0.0
    """Seconds since the oldest unfinished one began."""

    @classmethod
    def read(cls, fields: dict[str, Any]) -> Collectives:
        """The inverse of ``dataclasses.asdict``."""
        return cls(**fields | {"groups": {name: Begun(**one) for name, one in fields["groups"].items()}})

    def unfinished(self) -> Iterator[tuple[str, Begun]]:
        """(group, collective) for each group that has one."""
        return ((name, one) for name, one in self.groups.items() if not one.finished)

    def waiting(self) -> bool:
        """Whether anything was begun that is not finished."""
        return bool(self.messages) or any(True for _ in self.unfinished())


@dataclass(frozen=True)
class Waits:
    """One rank that waits for another, and in what."""

    rank: int
    other: int
    what: str


def _recorded() -> Iterator[dict[str, Any]]:
    """Entries of every recorder there is: NCCL's has moved between versions of torch."""
    newest = getattr(c10d, "_dump_fr_trace_json", None)
    dumps = (newest and partial(newest, backend="nccl2"), getattr(c10d, "_dump_nccl_trace_json", None), newest)
    for dump in filter(None, dumps):
        try:
            yield from json.loads(dump(includeCollectives=True, onlyActive=False)).get("entries", [])
        except (TypeError, ValueError, RuntimeError):  # no such backend, or a torch that has no recorder
            continue


def _is_finished(entry: dict[str, Any]) -> bool:
    return bool(entry.get("retired")) or entry.get("state") == "completed"


def _is_batch(entry: dict[str, Any]) -> bool:
    """The older recorder notes of a batch of messages as a whole that it is finished, of those in it never."""
    return entry["profiling_name"].endswith(":coalesced")


def _batch(entry: dict[str, Any]) -> tuple[str, int]:
    return entry["process_group"][0], entry["p2p_seq_id"]


def _begun(entry: dict[str, Any], newest: int) -> Begun:
    kind = entry["profiling_name"].split(":")[-1]
    sizes, types = (entry.get(f"input_{of}") or entry.get(f"output_{of}") or [] for of in ("sizes", "dtypes"))
    shapes = ", ".join(f"{list(map(int, size))}" for size in sizes[:2])
    what = f"{kind} of {' '.join(sorted(set(types))).lower()} {shapes}{' and others' if len(sizes) > 2 else ''}"
    elements = sum(math.prod(size) for size in sizes)
    alike = f"{kind} {sorted(set(types))} {elements}" if kind.endswith(_SAME_SIZE) else kind
    return Begun(entry["collective_seq_id"], newest, what, alike, _is_finished(entry))


def _message(entry: dict[str, Any], members: list[int]) -> list[int] | None:
    """[from, to] of an entry named ``nccl2:send 0->1`` or ``nccl2:recv 1<-0``, which counts within the group."""
    kind, _, ends = entry["profiling_name"].split(":")[-1].partition(" ")
    here, _, there = ends.partition("->" if kind == "send" else "<-")
    if not (here.isdigit() and there.isdigit()) or max(int(here), int(there)) >= len(members):
        return None
    pair = [members[int(here)], members[int(there)]]
    return pair if kind == "send" else pair[::-1]


def _ranks_of_groups() -> dict[str, list[int]]:
    ranks = torch.distributed.get_process_group_ranks
    return {name: ranks(group) for group, name in list(distributed_c10d._world.pg_names.items())}


def collectives_here() -> Collectives:
    """Those of this process. For a thread beside the training; some milliseconds."""
    if not torch.distributed.is_initialized():
        return Collectives()
    return from_entries(list(_recorded()), _ranks_of_groups())


def from_entries(entries: list[dict[str, Any]], ranks: dict[str, list[int]]) -> Collectives:
    """entries: as the recorder writes them. ranks: of each group, by its name."""
    entries.sort(key=lambda entry: entry["time_created_ns"])
    groups: dict[str, list[dict[str, Any]]] = {}
    messages = []
    batches = {_batch(entry) for entry in entries if _is_batch(entry) and _is_finished(entry)}
    entries = [
        entry for entry in entries if not _is_batch(entry) and not (entry["is_p2p"] and _batch(entry) in batches)
    ]
    for entry in entries:
        name, library = entry["process_group"][0], entry["profiling_name"].split(":")[0]
        if not entry["is_p2p"]:
            groups.setdefault(f"{name} {library}", []).append(entry)
        elif not _is_finished(entry) and (message := _message(entry, ranks.get(name, []))):
            messages.append(message)
    at = {name: _at(those) for name, those in groups.items()}
    open_ones = [entry["time_created_ns"] for entry in entries if not _is_finished(entry)]
    return Collectives(
        at,
        {name: ranks.get(name.split()[0], []) for name, one in at.items() if not one.finished},
        messages,
        round(time.time() - open_ones[0] / 1e9, 1) if open_ones else 0.0,
    )


def _at(entries: list[dict[str, Any]]) -> Begun:
    newest = max(entry["collective_seq_id"] for entry in entries)
    return _begun(next((entry for entry in entries if not _is_finished(entry)), entries[-1]), newest)


def who_waits(ranks: dict[int, Collectives]) -> list[Waits]:
    """Every rank that has begun what another has not."""
    found = []
    for rank, mine in ranks.items():
        for name, one in mine.unfinished():
            for other in mine.members.get(name, []):
                theirs = ranks[other].groups.get(name) if other in ranks else one
                if theirs is None or theirs.newest < one.number:
                    found.append(Waits(rank, other, one.what))
        for message in mine.messages:
            other = message[message[0] == rank]
            if other in ranks and message not in ranks[other].messages:
                found.append(Waits(rank, other, "a message to it" if message[0] == rank else "a message from it"))
    return found


def different(ranks: dict[int, Collectives]) -> dict[int, str]:
    """Ranks that are in the same unfinished collective of a group, as they count, but not in the same kind or size."""
    for rank, mine in ranks.items():
        for name, one in mine.unfinished():
            those = {other: ranks[other].groups.get(name) for other in mine.members.get(name, []) if other in ranks}
            same = {other: at for other, at in those.items() if at and at.number == one.number}
            if any(at.alike != one.alike for at in same.values()):
                return {other: at.what for other, at in sorted(({rank: one} | same).items())}
    return {}


def waited_for(waits: list[Waits]) -> list[int]:
    """Ranks that are waited for and wait for no process; none where they wait for each other."""
    waiting = {one.rank for one in waits}
    return sorted({one.other for one in waits} - waiting)


def in_a_circle(waits: list[Waits]) -> list[Waits]:
    """The shortest chain of ranks that ends where it began: ranks whose collectives come in another order."""
    following: dict[int, list[Waits]] = {}
    for one in waits:
        following.setdefault(one.rank, []).append(one)
    circles = (circle for rank in following if (circle := _circle(rank, following)))
    return min(circles, key=len, default=[])


def _circle(start: int, following: dict[int, list[Waits]]) -> list[Waits]:
    paths: list[list[Waits]] = [[one] for one in following[start]]
    seen = {start}
    while paths:
        path = paths.pop(0)
        last = path[-1].other
        if last == start:
            return path
        if last not in seen:
            seen.add(last)
            paths += [[*path, one] for one in following.get(last, [])]
    return []
