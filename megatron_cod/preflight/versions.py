"""Versions: the same on all machines."""

from __future__ import annotations

from collections.abc import Mapping

from megatron_cod.launch.versions import MUST_AGREE, differences, versions_here
from megatron_cod.preflight.check import Answers, Here
from megatron_cod.preflight.findings import FAIL, OK, WARN, Finding, Outcome


def collect(here: Here) -> dict[str, str]:
    """Name -> version."""
    return versions_here()


def compare(answers: Answers, here: Here) -> Outcome:
    """A machine that is not like most fails, or is warned of where the difference does no harm."""
    by_node = {member.node: versions for member, versions in answers.items()}
    found = differences(by_node)
    findings = []
    for node in by_node:
        mine = [(name, line) for name, (line, odd) in found.items() if node in odd]
        if not mine:
            findings.append(Finding(node, "versions", OK, "as on most machines"))
            continue
        state = FAIL if any(name in MUST_AGREE for name, _ in mine) else WARN
        hint = "install the same on all, or use one image" if state == FAIL else "does no harm by itself"
        findings.append(Finding(node, "versions", state, "; ".join(line for _, line in mine), hint))
    common: Mapping[str, str] = next((by_node[one.node] for one in findings if one.state == OK), {})
    return Outcome(findings, ", ".join(f"{name} {version}" for name, version in common.items()), {"versions": by_node})
