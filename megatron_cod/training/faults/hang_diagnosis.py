"""From the heartbeats of all ranks: which rank the others wait for, and in which collective."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from megatron_cod.training.faults.collectives import (
    Collectives,
    Waits,
    different,
    in_a_circle,
    waited_for,
    who_waits,
)
from megatron_cod.training.faults.main_thread_state import COMPUTING, SAVING, WAITING


@dataclass(frozen=True)
class Heartbeat:
    """A rank's heartbeat. Times are of its own clock and only compared with each other."""

    number: int
    """Counts up with every sign: who does not count up is silent."""
    forwards: int
    """Forward steps begun."""
    still: float
    """Seconds since the last of them began, or since the watch did."""
    waited: float
    """Seconds of waiting for others in the current collective, or since its oldest unfinished one began."""
    doing: str
    host: str
    pid: int
    at: Collectives = field(default_factory=Collectives)
    """Its collectives; empty while the rank makes progress."""

    def waits(self) -> bool:
        """Whether its main thread may be held up by other ranks."""
        if self.doing.startswith(WAITING):
            return True
        return self.at.waiting() and self.doing.startswith(COMPUTING)


@dataclass(frozen=True)
class Limits:
    """Seconds after which silence is a hang."""

    timeout: float
    """Without a heartbeat, or without a forward step of any rank; a save is given three times as long."""
    set_up: float
    """The collectives' own time-out before the first step."""
    training: float
    """The same from then on."""

    @property
    def interval(self) -> float:
        """Between two signs of a rank."""
        return min(max(self.timeout / 8, 0.2), 15.0, self.set_up / 20, self.training / 20)

    def patience(self, begun: bool) -> float:
        """How long a rank may wait in one collective: what waits longer is about to fail without naming anybody.
        begun: whether any rank has begun a forward step.

        A sign is up to an interval old when it is read, was made up to an interval after the wait began, and is read once
        an interval.
        """
        return (self.training if begun else self.set_up) - 4 * self.interval

    def still(self, sign: Heartbeat, begun: bool) -> float:
        """How long a rank may begin no forward step; in set-up, where one may build what all wait for, as it likes."""
        if not begun:
            return math.inf
        return self.timeout * (3 if sign.doing.startswith(SAVING) else 1)


@dataclass(frozen=True)
class Diagnosis:
    """The ranks that the others wait for, and the end of the error line."""

    ranks: list[int]
    why: str = ""


def diagnose(signs: dict[int, Heartbeat], limits: Limits) -> Diagnosis | None:
    """Of ranks that are all alive, those that the others wait for.

    Who has not begun a collective that others are in, and waits in none itself. Where the recorder has no entry: who is
    not waiting, else who has begun the fewest forward steps. None while there is time: where one of them may be still
    for longer, and none has waited for so long that its collective is about to fail.
    """
    begun = any(sign.forwards for sign in signs.values())
    out_of_time = any(sign.waited >= limits.patience(begun) for sign in signs.values())
    if not out_of_time and any(sign.still < limits.still(sign, begun) for sign in signs.values()):
        return None
    at = {rank: sign.at for rank, sign in signs.items()}
    differing = different(at)
    if differing:
        return Diagnosis(list(differing), f", which are in different collectives: {_each(differing)}")
    waits = who_waits(at)
    behind = waited_for(waits)
    busy = [rank for rank in behind if not signs[rank].waits()]
    if busy:
        return Diagnosis(busy, _for(busy, waits))
    circle = in_a_circle(waits) if not behind else []
    return _circle(circle, signs) if circle else Diagnosis(_without_recorder(signs))


def _without_recorder(signs: dict[int, Heartbeat]) -> list[int]:
    busy = [rank for rank, sign in signs.items() if not sign.waits()]
    if busy and len(busy) < len(signs):
        return busy
    fewest = min(sign.forwards for sign in signs.values())
    behind = [rank for rank, sign in signs.items() if sign.forwards == fewest]
    return behind if len(behind) < len(signs) else list(signs)


def _circle(circle: list[Waits], signs: dict[int, Heartbeat]) -> Diagnosis:
    """One of them may be busy anyway: what it has begun is for later."""
    busy = [one.rank for one in circle if not signs[one.rank].waits()]
    if busy and len(busy) < len(circle):
        return Diagnosis(busy, _for(busy, circle))
    each = [f"rank {one.rank} for rank {one.other} in {one.what}" for one in circle[:4]]
    return Diagnosis([one.rank for one in circle], f", which wait for each other: {', '.join(each)}")


def _each(whats: dict[int, str]) -> str:
    """Ranks that are in the same one are counted together."""
    ranks: dict[str, list[str]] = {}
    for rank, what in whats.items():
        ranks.setdefault(what, []).append(str(rank))
    return "; ".join(f"rank {', '.join(those[:4])}{'...' * (len(those) > 4)} {what}" for what, those in ranks.items())


def _for(ranks: list[int], waits: list[Waits]) -> str:
    one = next((one for one in waits if one.other in ranks), None)
    return f"; rank {one.rank} waits for it in {one.what}" if one else ""
