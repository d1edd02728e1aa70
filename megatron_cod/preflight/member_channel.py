"""How the processes of a preflight find each other and stay in step, and how a lost one is detected and named.

All of it goes through one key-value store on HEAD. After each check HEAD writes which members are left; a process
that has not answered by then is out, and the checks that follow are made without it.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, TCPStore

from megatron_cod.errors import UserError
from megatron_cod.launch.network import holder
from megatron_cod.preflight.process_place import Place

_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Member:
    """A process that came."""

    rank: int
    node: str
    local: int


def in_time(function: Callable[[], Any], seconds: float) -> Any:
    """What a function returns or raises; TimeoutError when it takes longer. It is then left alone in its thread."""
    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            outcome.append((True, function()))
        except Exception as error:
            outcome.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no end within {seconds:.0f} s")
    good, value = outcome[0]
    if not good:
        raise value
    return value


def distinct_names(places: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """(node, local process) of each, where machines of one name become ``node``, ``node#2`` and so on."""
    seen: Counter[tuple[str, int]] = Counter()
    apart = []
    for place in places:
        seen[place] += 1
        apart.append((place[0] + (f"#{seen[place]}" if seen[place] > 1 else ""), place[1]))
    return apart


class Meeting:
    """This process among the others."""

    def __init__(self, place: Place, head: str, port: int, seconds: float) -> None:
        """Raises UserError when HEAD's store cannot be opened, or reached within so many seconds."""
        self.place, self._head, self._port = place, head, port
        try:
            self.store = in_time(lambda: self._open(place.is_head, seconds), seconds + 5.0)
        except (DistError, TimeoutError) as error:
            if place.is_head and "EADDRINUSE" in str(error):
                raise UserError(
                    f"port {port} of {head}, for the preflight itself, is in use ({holder(port)})"
                ) from None
            raise UserError(
                f"the preflight on HEAD did not answer at {head}:{port} within {seconds:.0f} s: is it started there, "
                f"is the name right, does a firewall close the port?"
            ) from None
        self.members: list[Member] = []
        self.rank = -1

    def _open(self, holds: bool, seconds: float) -> Any:
        wait = timedelta(seconds=seconds)
        return TCPStore(self._head, self._port, is_master=holds, timeout=wait, wait_for_workers=False)

    def gather(self, seconds: float) -> list[list[str]]:
        """HEAD waits so long for all; who has come by then takes part. Returns [machine, line] for who is missing."""
        place = self.place
        number = self.store.add("came", 1)
        self.store.set(f"came/{number}", json.dumps([place.node, place.local, place.is_head]))
        if not place.is_head:
            roster = self._get("roster", 2 * seconds + 10.0)
            self._take(roster["members"], number)
            return roster["missing"]
        deadline = time.monotonic() + seconds
        while self.store.add("came", 0) < place.world and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        came = [json.loads(self.store.get(f"came/{one}")) for one in range(1, self.store.add("came", 0) + 1)]
        named = distinct_names([(node, local) for node, local, _ in came])
        head = next(node for (node, _), (_, _, is_head) in zip(named, came, strict=True) if is_head)
        order = sorted(range(len(named)), key=lambda one: (named[one][0] != head, named[one]))
        members = [
            {"rank": rank, "node": named[one][0], "local": named[one][1], "number": one + 1}
            for rank, one in enumerate(order)
        ]
        missing = self._missing(members, seconds)
        self.store.set("roster", json.dumps({"members": members, "missing": missing}))
        self._take(members, number)
        return missing

    def _missing(self, members: Sequence[dict[str, Any]], seconds: float) -> list[list[str]]:
        here = {member["node"] for member in members}
        lines = [[node, f"not there within {seconds:.0f} s"] for node in self.place.expected if node not in here]
        if not lines and len(members) < self.place.world:
            came = f"{len(members)} of {self.place.world} processes came within {seconds:.0f} s"
            lines = [["?", f"{came}, from {', '.join(sorted(here))}"]]
        return lines

    def _take(self, members: Sequence[dict[str, Any]], number: int) -> None:
        self.rank = next((one["rank"] for one in members if one["number"] == number), -1)
        self.members = [Member(one["rank"], one["node"], one["local"]) for one in members]
        if self.rank < 0:
            raise UserError("this process came too late: the preflight has begun without it")

    def _get(self, key: str, seconds: float) -> Any:
        try:
            self.store.wait([key], timedelta(seconds=seconds))
            return json.loads(self.store.get(key))
        except DistError:
            raise UserError(f"the preflight on HEAD is gone, or gave no sign within {seconds:.0f} s") from None

    @property
    def firsts(self) -> list[Member]:
        """One process a machine, which answers for it."""
        nodes: dict[str, Member] = {}
        for member in self.members:
            nodes.setdefault(member.node, member)
        return list(nodes.values())

    @property
    def me(self) -> Member:
        return next(member for member in self.members if member.rank == self.rank)

    def share(self, key: str, value: Any = None, seconds: float = 30.0) -> Any:
        """A value from HEAD for all: HEAD gives it, the others wait for it."""
        if self.place.is_head:
            self.store.set(f"shared/{key}", json.dumps(value))
            return value
        return self._get(f"shared/{key}", seconds)

    def collect(self, key: str, answer: Any, ranks: Sequence[int], seconds: float) -> dict[int, Any]:
        """Everyone's answer, on HEAD; elsewhere nothing. Who is in ``ranks`` and gives none in time is out from then on.

        All members call it, also those that are not asked (answer None).
        """
        if answer is not None:
            self.store.set(f"answer/{key}/{self.rank}", json.dumps(answer))
        if not self.place.is_head:
            left = self._get(f"left/{key}", 2 * seconds + 30.0)
            if self.rank not in left:
                raise UserError(
                    f"this process took too long for the check of {key}: the preflight continues without it"
                )
            self.members = [member for member in self.members if member.rank in left]
            return {}
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + seconds
        while len(answers) < len(ranks) and time.monotonic() < deadline:
            for rank in ranks:
                if rank not in answers and self.store.check([f"answer/{key}/{rank}"]):
                    answers[rank] = json.loads(self.store.get(f"answer/{key}/{rank}"))
            time.sleep(_POLL_SECONDS)
        self.members = [one for one in self.members if one.rank in answers or one.rank not in ranks]
        self.store.set(f"left/{key}", json.dumps([one.rank for one in self.members]))
        return answers

    def connection(self, seconds: float) -> Any:
        """Another connection to the store, for one who waits on it: a wait keeps all other calls of a connection back."""
        return self._open(False, seconds)

    def read(self, key: str, deadline: float) -> Any:
        """What a member has set under a key. TimeoutError when ``time.monotonic()`` passes the deadline before."""
        while not self.store.check([key]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"another machine set no {key} in time")
            time.sleep(_POLL_SECONDS)
        return json.loads(self.store.get(key))

    def depart(self, seconds: float = 10.0) -> None:
        """The last word has been shared. HEAD, which holds the store, stays until all have it."""
        with suppress(DistError):
            gone = self.store.add("gone", 1)
            deadline = time.monotonic() + seconds
            while self.place.is_head and gone < len(self.members) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                gone = self.store.add("gone", 0)
