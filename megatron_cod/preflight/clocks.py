"""Clocks: how far each is from HEAD's, measured over the network."""

from __future__ import annotations

import time
from collections.abc import Sequence

from megatron_cod.preflight.check import Answers, Here
from megatron_cod.preflight.findings import FAIL, OK, WARN, Finding, Outcome
from megatron_cod.preflight.service import Answer, ask

_SAMPLES = 16
_WARN_SHARE = 0.1


def offset(answers: Sequence[Answer]) -> tuple[float, float]:
    """(seconds by which this clock is ahead, the most that this may be wrong), by the quickest answer, as NTP does."""
    best = min(answers, key=lambda one: one.received - one.sent)
    return (best.sent + best.received) / 2 - best.time, (best.received - best.sent) / 2


def collect(here: Here) -> tuple[float, float]:
    """This machine's offset, and its error."""
    if here.meeting.place.is_head:
        return 0.0, 0.0
    return offset(ask(here.head_address, here.shared["service"], times=_SAMPLES, clock=time.time))


def compare(answers: Answers, here: Here) -> Outcome:
    """Above ``--max-clock-offset`` a machine fails, above a tenth of it there is a warning."""
    limit = here.settings.max_clock_offset
    findings = []
    for member, (ahead, error) in answers.items():
        state = FAIL if abs(ahead) > limit else WARN if abs(ahead) > limit * _WARN_SHARE else OK
        text = f"{ahead:+.4f} s from HEAD's clock (to {error:.4f} s)"
        hint = "start chrony or ntpd: logs cannot be read side by side, munge and certificates may refuse"
        findings.append(Finding(member.node, "clocks", state, text, "" if state == OK else hint))
    apart = max((ahead for ahead, _ in answers.values()), default=0.0) - min(
        (ahead for ahead, _ in answers.values()), default=0.0
    )
    figures = {"offset_seconds": {member.node: ahead for member, (ahead, _) in answers.items()}}
    return Outcome(findings, f"{apart * 1000:.1f} ms apart at most", figures)
