"""Rehearsal of the job in a separate process on HEAD: its plan, and the files that it reads and writes.

A process of its own: without a GPU, Megatron is adapted in place (``adaptations/cpu.py``), and the preflight measures.
"""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from megatron_cod.args import MegatronArgs
from megatron_cod.common.amounts import GIB
from megatron_cod.errors import UserError
from megatron_cod.preflight.check import Answers, Here
from megatron_cod.preflight.findings import FAIL, OK, SKIP, WARN, Finding, Outcome

_NEARLY_FULL = 0.9


class JobProcess:
    """Started at once, asked later. No flags: no job."""

    def __init__(self, world: int, flags: list[str]) -> None:
        self._process = None
        if flags:
            command = [sys.executable, "-m", "megatron_cod.preflight.job", str(world), *flags]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._begun = time.monotonic()

    def result(self, seconds: float) -> dict[str, Any]:
        """What ``describe`` found; an ``error`` where it found no end in time."""
        if self._process is None:
            return {}
        try:
            output, errors = self._process.communicate(timeout=max(seconds - (time.monotonic() - self._begun), 1.0))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return {"error": f"the rehearsal found no end within {seconds:.0f} s"}
        lines = output.splitlines()
        if self._process.returncode or not lines:
            last = (errors.strip().splitlines() or ["no reason given"])[-1]
            return {"error": f"the rehearsal failed: {last[:300]}"}
        return json.loads(lines[-1])


def describe(world: int, flags: list[str]) -> dict[str, Any]:
    """The launch as plain values; ``error`` is the line with which it would be refused, else empty."""
    from megatron_cod.data.datasets.blends import blends_of, prefixes_of
    from megatron_cod.estimate.memory import checkpoint_bytes
    from megatron_cod.rehearsal.launch import read_launch
    from megatron_cod.rehearsal.plan import NotPlanned, make_plan

    found: dict[str, Any] = {"world": world, "error": ""}

    def note_files(raw: MegatronArgs) -> None:
        found.update(
            save=raw.save,
            prefixes=[] if raw.mock_data else prefixes_of(blends_of(raw)),
            files=[raw.tokenizer_model] if raw.tokenizer_model and Path(raw.tokenizer_model).is_file() else [],
            vocab_size=raw.padded_vocab_size or raw.vocab_size,
            kept=raw.keep_last_checkpoints,
        )

    try:
        launch = read_launch(flags, world, note_files)
    except UserError as error:
        return found | {"error": " ".join(str(error).split())}
    args = launch.args
    try:
        plan = make_plan(launch)
    except NotPlanned as error:
        return found | {"plan": f"{world:,} ranks: {error}", "memory_bytes": None, "notes": list(launch.notes)}
    sizes = ", ".join(f"{name} {size}" for name, size in plan.sizes.items())
    return found | {
        "vocab_size": args.padded_vocab_size or args.vocab_size,
        "plan": f"{plan.world_size:,} ranks: {sizes}; {plan.parameters:,} parameters, {plan.num_layers} layers",
        "memory_bytes": max(stage.memory.total for stage in plan.stages),
        "checkpoint_bytes": checkpoint_bytes(args, plan.parameters),
        "saves": math.ceil(plan.steps / args.save_interval) if plan.steps and args.save_interval else None,
        "notes": list(plan.notes),
    }


def collect(here: Here) -> bool:
    """The machines check nothing: HEAD has the answer already."""
    return True


def compare(answers: Answers, here: Here) -> Outcome:
    """Fails where the launch would be refused, or a rank needs more memory than the smallest GPU has."""
    job, head = here.job, here.meeting.me
    nodes = [member.node for member in answers if member != head]
    others = [Finding(node, "job", SKIP, "gone through on HEAD") for node in nodes]
    if not job:
        return Outcome(
            [Finding(head.node, "job", SKIP, "no flags of a launch"), *others], "no launch given: not rehearsed"
        )
    if job["error"]:
        hint = "megatron-cod rehearse with the same flags tests it without the machines"
        return Outcome([Finding(head.node, "job", FAIL, f"would be refused: {job['error']}", hint), *others])
    need, there = job["memory_bytes"], here.shared.get("gpu_memory_bytes")
    if need is None:
        return Outcome([Finding(head.node, "job", WARN, "memory is not estimated"), *others], job["plan"], job)
    state, hint = OK, ""
    text = f"a rank needs about {need / GIB:.2f} GiB"
    if there:
        text += f" of {there / GIB:.2f} GiB"
        state = FAIL if need > there else WARN if need > _NEARLY_FULL * there else OK
        hint = "" if state == OK else "more parallelism, --recompute-granularity, a smaller --micro-batch-size"
    return Outcome([Finding(head.node, "job", state, text, hint), *others], job["plan"], job)


def main() -> None:
    """``WORLD flags...``: print the description as the last line."""
    for name in ("torch.utils.cpp_extension", "megatron"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    print(json.dumps(describe(int(sys.argv[1]), sys.argv[2:])), flush=True)


if __name__ == "__main__":
    main()
