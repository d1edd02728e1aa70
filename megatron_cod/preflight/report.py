"""The table for people, and the same for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_cod.common.lists import aligned
from megatron_cod.preflight.findings import FAIL, SKIP, WARN, Finding, worst
from megatron_cod.preflight.table import Result

_MOST_NODES = 64
MEETING = "there"


def _nodes(findings: Sequence[Finding]) -> list[str]:
    return list(dict.fromkeys(finding.node for finding in findings))


def _all(results: Sequence[Result], missing: Sequence[Finding]) -> list[Finding]:
    return [*missing, *(finding for result in results for finding in result.outcome.findings)]


def failed(results: Sequence[Result], missing: Sequence[Finding]) -> bool:
    """Whether the job should not be started."""
    return any(finding.state == FAIL for finding in _all(results, missing))


def missing_findings(missing: Sequence[Sequence[str]]) -> list[Finding]:
    """Who did not come (``Meeting.gather``), as findings."""
    hint = "is the machine up, and was the preflight started there?"
    return [Finding(node, MEETING, FAIL, text, hint) for node, text in missing]


def format_table(results: Sequence[Result], missing: Sequence[Finding]) -> str:
    """Machines down, checks across; then a line for each cell that is not OK, and the figures of each check."""
    findings = _all(results, missing)
    checks = [result.check for result in results]
    nodes = _nodes([finding for result in results for finding in result.outcome.findings])
    nodes += [node for node in _nodes(missing) if node not in nodes]
    rows = {
        node: [worst([f.state for f in findings if (f.node, f.check) == (node, check)]) for check in checks]
        for node in nodes
    }
    for finding in missing:
        if all(state == SKIP for state in rows[finding.node]):
            rows[finding.node] = ["absent", *rows[finding.node][1:]]
    shown = nodes
    if len(nodes) > _MOST_NODES:
        shown = [node for node in nodes if any(state in (WARN, FAIL, "absent") for state in rows[node])]
    table = [["node", *checks], *([node, *rows[node]] for node in shown)]
    lines = aligned(table, left=len(checks) + 1)
    if len(shown) < len(nodes):
        lines.append(f"{len(nodes) - len(shown)} more machines, all in order")
    lines.append("")
    lines += [f"{result.check}: {result.outcome.line}" for result in results if result.outcome.line]
    marked = [finding for finding in findings if finding.state in (WARN, FAIL)]
    if marked:
        lines.append("")
    for finding in marked:
        hint = f"; {finding.hint}" if finding.hint else ""
        lines.append(f"{finding.state} {finding.node} {finding.check}: {finding.text}{hint}")
    return "\n".join(lines)


def as_json(results: Sequence[Result], missing: Sequence[Finding]) -> dict[str, Any]:
    """Findings and figures as plain values."""
    return {
        "passed": not failed(results, missing),
        "findings": [vars(finding) for finding in _all(results, missing)],
        "figures": {result.check: dict(result.outcome.figures) for result in results},
        "lines": {result.check: result.outcome.line for result in results},
    }
