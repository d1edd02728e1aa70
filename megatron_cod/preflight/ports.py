"""The port of the job's rendezvous: free on HEAD, and reached from every machine."""

from __future__ import annotations

from megatron_cod.preflight.check import Answers, Here
from megatron_cod.preflight.findings import FAIL, OK, SKIP, Finding, Outcome
from megatron_cod.preflight.service import ask


def collect(here: Here) -> str:
    """What is wrong, or nothing."""
    port, where = here.settings.port, f"{here.settings.head}:{here.settings.port}"
    if here.meeting.place.is_head:
        return here.shared["port_error"]
    if here.shared["port_error"]:
        return "?"
    try:
        answer = ask(here.head_address, port)[0]
    except OSError as error:
        return f"{where} is not reached: {error.strerror or error}"
    return "" if answer.secret == here.shared["secret"] else f"another preflight answers at {where}"


def compare(answers: Answers, here: Here) -> Outcome:
    """Fails where the port is taken, or somebody does not get through to it."""
    findings = []
    for member, wrong in answers.items():
        if wrong == "?":
            findings.append(Finding(member.node, "ports", SKIP, "not tried: the port is not free on HEAD"))
        elif wrong:
            head = member.node == here.meeting.me.node
            hint = "end that process, or give another PORT" if head else "open it in the firewall, or give another PORT"
            findings.append(Finding(member.node, "ports", FAIL, wrong, hint))
        else:
            findings.append(Finding(member.node, "ports", OK, "free" if member.rank == 0 else "reached"))
    return Outcome(findings, f"rendezvous at {here.settings.head}:{here.settings.port}")
