"""Datasets and tokenizer files: there, whole and the same on every machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from megatron_cod.data.datasets.check import check_prefix
from megatron_cod.preflight.check import Answers, Here
from megatron_cod.preflight.findings import FAIL, OK, SKIP, Finding, Outcome


def collect(here: Here) -> dict[str, Any]:
    """Prefix -> [documents, tokens]; UserError, naming it, for one that is damaged or missing."""
    for name in here.job.get("files", []):
        with Path(name).open("rb") as file:
            file.read(1)
    found = {}
    for prefix in here.job.get("prefixes", []):
        summary = check_prefix(prefix, vocab_size=here.job.get("vocab_size"))
        found[prefix] = [summary.documents, summary.tokens]
    return found


def compare(answers: Answers, here: Here) -> Outcome:
    """A machine fails whose datasets have other sizes than most machines' under the same names."""
    if not here.job.get("prefixes"):
        return Outcome([Finding(one.node, "data", SKIP, "no data given") for one in answers], "none given: not checked")
    usual = Counter(repr(sorted(found.items())) for found in answers.values()).most_common(1)[0][0]
    findings = []
    for member, found in answers.items():
        if repr(sorted(found.items())) == usual:
            findings.append(Finding(member.node, "data", OK, "whole"))
            continue
        sizes = ", ".join(
            f"{prefix}: {documents:,} documents, {tokens:,} tokens" for prefix, (documents, tokens) in found.items()
        )
        hint = "copy the files again, or train from a shared file system"
        findings.append(Finding(member.node, "data", FAIL, f"not what most machines have: {sizes}", hint))
    sizes = next(iter(answers.values()))
    return Outcome(findings, f"{len(sizes)} datasets, {sum(tokens for _, tokens in sizes.values()):,} tokens")
