"""GPUs, by nvidia-smi and by torch: as many, of one kind, free, without memory errors."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from typing import Any

import torch

from megatron_cod.errors import UserError
from megatron_cod.preflight.check import Answers, Here
from megatron_cod.preflight.findings import FAIL, OK, SKIP, WARN, Finding, Outcome

_QUERY = "index,name,memory.total,memory.used,ecc.errors.uncorrected.volatile.total"
_BUSY_MIB = 1024  # above this another program uses the GPU


def parse(text: str) -> list[dict[str, Any]]:
    """nvidia-smi's comma-separated lines; memory in MiB, ``ecc`` None where the GPU does not count errors."""
    gpus = []
    for line in text.strip().splitlines():
        index, name, total, used, ecc = (word.strip() for word in line.split(","))
        gpus.append(
            {
                "index": int(index),
                "name": name,
                "total": int(total),
                "used": int(used),
                "ecc": int(ecc) if ecc.isdigit() else None,
            }
        )
    return gpus


def seen_by_torch() -> list[dict[str, Any]]:
    """The same of the GPUs that torch sees, where there is no nvidia-smi (in slim images): nothing is known of use."""
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        {"index": index, "name": one.name, "total": one.total_memory >> 20, "used": 0, "ecc": None}
        for index, one in enumerate(found)
    ]


def collect(here: Here) -> dict[str, Any]:
    """GPUs of this machine, how many of them torch sees, and how many processes were started beside this."""
    mine = [one for one in here.meeting.members if one.node == here.meeting.me.node]
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_smi = shutil.which("nvidia-smi") is not None
    gpus: list[dict[str, Any]] = seen_by_torch() if seen and not has_smi else []
    if has_smi:
        command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        if done.returncode:
            raise UserError(f"nvidia-smi: {' '.join((done.stdout + done.stderr).split())[:200]}")
        gpus = parse(done.stdout)
    return {"gpus": gpus, "seen": seen, "processes": len(mine), "smi": has_smi}


def _wrong(answer: dict[str, Any], kind: tuple[int, str]) -> tuple[list[str], list[str]]:
    """What fails, and what is to be warned of."""
    gpus, seen = answer["gpus"], answer["seen"]
    fails, warns = [], []
    if _kind(answer) != kind:
        fails.append("{} x {}, most machines have {} x {}".format(*_kind(answer), *kind))
    if gpus and not seen:
        fails.append(f"{len(gpus)} GPUs, but torch sees none: a build without CUDA, or a driver that is too old")
    for gpu in gpus:
        if gpu["ecc"]:
            fails.append(f"GPU {gpu['index']} has {gpu['ecc']} uncorrected memory errors")
        if gpu["used"] > _BUSY_MIB:
            warns.append(f"GPU {gpu['index']} has {gpu['used']} of {gpu['total']} MiB in use")
    if gpus and not answer["smi"]:
        warns.append(
            f"{len(gpus)} GPUs by torch's count; there is no nvidia-smi to tell of their use and of memory errors"
        )
    if seen and answer["processes"] > seen:
        fails.append(f"{answer['processes']} processes for {seen} GPUs: NCCL takes one process a GPU")
    elif seen and answer["processes"] != seen:
        warns.append(f"{answer['processes']} processes for {seen} GPUs")
    return fails, warns


def _kind(answer: dict[str, Any]) -> tuple[int, str]:
    names = sorted({gpu["name"] for gpu in answer["gpus"]})
    return len(answer["gpus"]), " and ".join(names) or "no GPU"


def compare(answers: Answers, here: Here) -> Outcome:
    """Fails on what a job would fail on; nothing to check where no machine has any."""
    if not any(answer["gpus"] for answer in answers.values()):
        return Outcome(
            [Finding(one.node, "gpus", SKIP, "no GPU") for one in answers], "none, by nvidia-smi and torch: not checked"
        )
    kind = Counter(map(_kind, answers.values())).most_common(1)[0][0]
    findings = []
    for member, answer in answers.items():
        fails, warns = _wrong(answer, kind)
        state = FAIL if fails else WARN if warns else OK
        hint = "remove the machine, or have it repaired" if fails else "is that meant?" if warns else ""
        findings.append(Finding(member.node, "gpus", state, "; ".join(fails + warns) or "in order", hint))
    memory = min((gpu["total"] for answer in answers.values() for gpu in answer["gpus"]), default=0)
    figures = {
        "memory_mib": memory,
        "gpus": {one.node: answer["gpus"] for one, answer in answers.items()},
        "one_for_each_process": all(answer["processes"] <= answer["seen"] for answer in answers.values()),
    }
    return Outcome(findings, f"{kind[0]} x {kind[1]} a machine, {memory:,} MiB each", figures)
