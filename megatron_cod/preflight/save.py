"""``--save``: one directory that all machines can write, and room in it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import psutil

from megatron_cod.checkpoint.directory import iterations
from megatron_cod.common.amounts import GIB
from megatron_cod.launch.shared_directory import leave_mark, not_seen
from megatron_cod.preflight.check import Answers, Here
from megatron_cod.preflight.findings import FAIL, OK, SKIP, WARN, Finding, Outcome

_WRITTEN_WITHIN_SECONDS, _SEEN_WITHIN_SECONDS = 20.0, 10.0
_MARGIN = 1.2


def _filesystem(directory: Path) -> str:
    """Type of the file system that holds a directory, as the mount table has it."""
    mounts = {Path(one.mountpoint): one.fstype for one in psutil.disk_partitions(all=True)}
    return next((mounts[path] for path in [directory, *directory.parents] if path in mounts), "unknown")


def collect_shared(here: Here) -> dict[str, Any]:
    """Write a mark, wait for those of all. Returns the machines whose mark is missing."""
    save = here.job.get("save")
    if not save:
        return {"save": None}
    directory, meeting = Path(save).resolve(), here.meeting
    directory.mkdir(parents=True, exist_ok=True)
    mark = leave_mark(directory)
    here.marks.append(mark)
    meeting.store.set(f"mark/{meeting.rank}", json.dumps(mark.name))
    deadline = time.monotonic() + _WRITTEN_WITHIN_SECONDS
    nodes = {meeting.read(f"mark/{member.rank}", deadline): member.node for member in meeting.firsts}
    begun = time.monotonic()
    lost = not_seen(directory, list(nodes), _SEEN_WITHIN_SECONDS)
    return {
        "save": str(directory),
        "unseen": [nodes[name] for name in lost],
        "seconds": time.monotonic() - begun,
        "filesystem": _filesystem(directory),
    }


def compare_shared(answers: Answers, here: Here) -> Outcome:
    """A machine fails that does not see what HEAD wrote, or whose mark HEAD does not see."""
    if not here.job.get("save"):
        return Outcome(
            [Finding(one.node, "save", SKIP, "no --save") for one in answers], "no --save given: not checked"
        )
    head = here.meeting.me
    unseen_by_head = answers[head]["unseen"] if head in answers else []
    findings = []
    for member, answer in answers.items():
        apart = head.node in answer["unseen"] or member.node in unseen_by_head
        state = FAIL if apart and member != head else OK
        text = f"{answer['save']} ({answer['filesystem']}): "
        text += f"not the directory of {head.node}" if state == FAIL else "written, and seen by all that share it"
        hint = "mount a shared file system there, and give its path" if state == FAIL else ""
        findings.append(Finding(member.node, "save", state, text, hint))
    slowest = max(answer["seconds"] for answer in answers.values())
    return Outcome(findings, f"{here.job['save']}, all marks seen within {slowest:.1f} s" if slowest < 10 else "")


def collect_disk(here: Here) -> dict[str, Any]:
    """Free bytes and files, and how many checkpoints are there already."""
    save = here.job.get("save")
    if not save or not Path(save).is_dir():
        return {"free": None}
    return {"free": shutil.disk_usage(save).free, "present": len(iterations(save))}


def bytes_needed(job: dict[str, Any], present: int) -> int | None:
    """Room for the checkpoints that are still to be written: those kept and one being written, or all."""
    size = job.get("checkpoint_bytes")
    limits = [most for most in (job.get("saves"), (job.get("kept") or -1) + 1) if most]
    if not size or not limits:
        return None
    return int(size * max(min(limits) - present, 1))


def compare_disk(answers: Answers, here: Here) -> Outcome:
    """Fails where the checkpoints do not fit. Quotas are not checked."""
    findings, need = [], None
    for member, answer in answers.items():
        if answer["free"] is None:
            findings.append(Finding(member.node, "disk", SKIP, "no --save there"))
            continue
        need = bytes_needed(here.job, answer["present"])
        free = answer["free"]
        text = f"{free / GIB:,.1f} GiB free, {need / GIB:,.3f} GiB needed" if need else f"{free / GIB:,.1f} GiB free"
        state = OK if not need or free >= need * _MARGIN else WARN if free >= need else FAIL
        hint = "" if state == OK else "make room, or keep fewer: --keep-last-checkpoints, --save-interval"
        findings.append(Finding(member.node, "disk", state, text, hint))
    size = here.job.get("checkpoint_bytes")
    line = f"a checkpoint takes {size / GIB:,.3f} GiB, those to come {need / GIB:,.3f} GiB" if size and need else ""
    return Outcome(findings, line, {"checkpoint_bytes": size, "needed_bytes": need})
