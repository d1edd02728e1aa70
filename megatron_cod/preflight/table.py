"""All checks in their order, and going through them."""

from __future__ import annotations

import errno
import secrets
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch

from megatron_cod.launch.network import holder
from megatron_cod.preflight import bandwidth, clocks, data, gpus, interfaces, job, ports, save, speed, versions
from megatron_cod.preflight.check import Check, Here
from megatron_cod.preflight.findings import FAIL, Finding, Outcome
from megatron_cod.preflight.job import JobProcess
from megatron_cod.preflight.member_channel import Member, in_time
from megatron_cod.preflight.service import Service

CHECKS = (
    Check("versions", 60, versions.collect, versions.compare),
    Check("clocks", 20, clocks.collect, clocks.compare),
    Check("ports", 20, ports.collect, ports.compare),
    Check("interfaces", 30, interfaces.collect, interfaces.compare),
    Check("gpus", 30, gpus.collect, gpus.compare),
    Check("speed", 60, speed.collect, speed.compare, everyone=True),
    Check("bandwidth", 120, bandwidth.collect, bandwidth.compare, everyone=True),
    Check("save", 45, save.collect_shared, save.compare_shared),
    Check("disk", 20, save.collect_disk, save.compare_disk),
    Check("data", 300, data.collect, data.compare),
    Check("job", 10, job.collect, job.compare),
)
JOB_SECONDS = 240.0
_SLACK_SECONDS = 10.0


@dataclass(frozen=True)
class Result:
    """What one check found, on HEAD."""

    check: str
    outcome: Outcome


def open_service(port: int) -> dict[str, Any]:
    """On HEAD: the clock and the port of the job's rendezvous in one, or why that port is not available."""
    secret = secrets.token_hex(8)
    try:
        return {"service": Service("", port, secret).port, "secret": secret, "port_error": ""}
    except OSError as error:
        used = error.errno == errno.EADDRINUSE
        why = f"port {port} is in use ({holder(port)})" if used else f"port {port}: {error.strerror or error}"
        return {"service": Service("", 0, secret).port, "secret": secret, "port_error": why}


def run_checks(here: Here, launch: JobProcess | None) -> list[Result]:
    """Go through the table with all members. Returns what was found, on HEAD; elsewhere nothing. launch: on HEAD."""
    meeting, is_head = here.meeting, here.meeting.place.is_head
    here.shared |= meeting.share("service", open_service(here.settings.port) if is_head else None)
    results: list[Result] = []
    for check in CHECKS:
        if here.settings.check_timeout:
            check = replace(check, seconds=min(check.seconds, here.settings.check_timeout))
        if check.name == "speed":
            here.shared["backend"] = meeting.share("backend", _backend(results) if is_head else None)
        if check.name == "save":
            found = launch.result(JOB_SECONDS) if launch else None
            here.shared["job"] = meeting.share("job", found, JOB_SECONDS + _SLACK_SECONDS)
        if is_head:
            print(f"checking {check.name}", file=sys.stderr, flush=True)
        outcome = _run(check, here)
        if is_head:
            results.append(Result(check.name, outcome))
            if check.name == "gpus":
                here.shared["gpu_memory_bytes"] = outcome.figures.get("memory_mib", 0) << 20
    return results


def _backend(results: list[Result]) -> str:
    """NCCL where torch sees a GPU for each process of every machine."""
    gpus_found = next((one.outcome.figures for one in results if one.check == "gpus"), {})
    return "nccl" if gpus_found.get("one_for_each_process") and torch.cuda.is_available() else "gloo"


def _run(check: Check, here: Here) -> Outcome:
    meeting = here.meeting
    asked = meeting.members if check.everyone else meeting.firsts
    answer = None
    if meeting.me in asked:
        try:
            answer = {"value": in_time(lambda: check.collect(here), check.seconds)}
        except (ValueError, OSError, RuntimeError) as error:
            answer = {"error": " ".join(f"{error}".split())[:300] or type(error).__name__}
    answers = meeting.collect(check.name, answer, [member.rank for member in asked], check.seconds + _SLACK_SECONDS)
    if not meeting.place.is_head:
        return Outcome([])
    return compared(check, here, asked, answers)


def compared(check: Check, here: Here, asked: list[Member], answers: dict[int, Any]) -> Outcome:
    """The check's own findings for the answers, and a failure for each machine that could not answer."""
    lost, good = [], {}
    for member in asked:
        answer = answers.get(member.rank)
        if answer is None:
            text = f"process {member.local} gave no answer within {check.seconds + _SLACK_SECONDS:.0f} s"
            lost.append(Finding(member.node, check.name, FAIL, text, "is it down, or stuck? Left out from here"))
        elif "error" in answer:
            lost.append(Finding(member.node, check.name, FAIL, answer["error"]))
        else:
            good[member] = answer["value"]
    outcome = check.compare(good, here) if good and not (check.everyone and lost) else Outcome([])
    return replace(outcome, findings=[*lost, *outcome.findings])
