"""What a check has at hand, without other processes: for judging answers that are made up."""

from argparse import Namespace
from types import SimpleNamespace
from typing import Any

from megatron_cod.preflight.check import Check, Here
from megatron_cod.preflight.findings import OK, SKIP, Outcome
from megatron_cod.preflight.member_channel import Member

SETTINGS = {
    "head": "a",
    "port": 29400,
    "max_clock_offset": 5.0,
    "min_bandwidth": 0.0,
    "size_mib": 16,
    "check_timeout": None,
}


def members(nodes: str, processes: int = 1) -> list[Member]:
    """One letter a machine."""
    return [Member(one, nodes[one // processes], one % processes) for one in range(len(nodes) * processes)]


def here(nodes: str = "ab", processes: int = 1, shared: dict[str, Any] | None = None, **settings: Any) -> Here:
    """As HEAD, machine ``a``, has it."""
    all_members = members(nodes, processes)
    meeting: Any = SimpleNamespace(members=all_members, me=all_members[0])
    return Here(meeting, Namespace(**{**SETTINGS, **settings}), "127.0.0.1", {"backend": "gloo", **(shared or {})})


def compare(check: Check | Any, answers: dict[str, Any], **given: Any) -> tuple[dict[str, str], Outcome]:
    """A machine's answer by its letter -> (the states that are neither OK nor omitted, by machine; the verdict)."""
    nodes = "".join(answers)
    at_hand = here(nodes, **given)
    outcome = check.compare(dict(zip(at_hand.meeting.members, answers.values(), strict=True)), at_hand)
    return {one.node: one.state for one in outcome.findings if one.state not in (OK, SKIP)}, outcome
