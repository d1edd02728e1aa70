"""How fast each process computes while all others compute too: matrix products, attention, memory. A slow one is named.

Every step of a job waits for its slowest rank. The figures are those that the planner needs of a machine
(``machine_file.py``): FLOP/s of products by precision and of flash attention, bytes a second of a copy.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from megatron_cod.preflight.check import Answers, Here
from megatron_cod.preflight.findings import OK, WARN, Finding, Outcome
from megatron_cod.preflight.member_channel import Member

_MEASURE_SECONDS = 0.4
_SLOW = 0.85
"""A GPU below this share of the median of all is slow."""
_SLOW_CPU = 0.5
"""The same of a process on CPUs, whose cores others use as well."""


@dataclass(frozen=True)
class Sizes:
    """Of what is measured: products [rows, width] x [width, width], attention [1, heads, length, 64], a copied buffer."""

    rows: int
    width: int
    heads: int
    length: int
    copied: int
    """Bytes."""


_ON_GPU = Sizes(rows=8192, width=8192, heads=32, length=4096, copied=1 << 30)
_ON_CPU = Sizes(rows=512, width=1024, heads=8, length=512, copied=1 << 26)
_HEAD = 64


def _seconds(call: Callable[[], Any], finished: Callable[[], None]) -> float:
    """Seconds of one call: the median of those within ``_MEASURE_SECONDS``."""
    call()
    finished()
    taken: list[float] = []
    begun = time.perf_counter()
    while not taken or time.perf_counter() - begun < _MEASURE_SECONDS:
        before = time.perf_counter()
        call()
        finished()
        taken.append(time.perf_counter() - before)
    return statistics.median(taken)


def product_rate(sizes: Sizes, dtype: torch.dtype, device: str, finished: Callable[[], None]) -> float:
    """FLOP/s of a matrix product."""
    left = torch.randn(sizes.rows, sizes.width, device=device, dtype=dtype)
    right = torch.randn(sizes.width, sizes.width, device=device, dtype=dtype)
    return 2 * sizes.rows * sizes.width**2 / _seconds(lambda: left @ right.t(), finished)


def attention_rate(sizes: Sizes, dtype: torch.dtype, device: str, finished: Callable[[], None]) -> float:
    """FLOP/s of causal flash attention, forward and backward, counted as the planner counts them."""
    shape = (1, sizes.heads, sizes.length, _HEAD)
    queries, keys, values = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    ahead = torch.randn(shape, device=device, dtype=dtype)

    def call() -> None:
        scaled_dot_product_attention(queries, keys, values, is_causal=True).backward(ahead)

    forward = 4 * sizes.length**2 * sizes.heads * _HEAD / 2
    return 3.5 * forward / _seconds(call, finished)


def copy_rate(sizes: Sizes, device: str, finished: Callable[[], None]) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.ones(sizes.copied // 4, device=device)
    target = torch.empty_like(source)
    return 2 * sizes.copied / _seconds(lambda: target.copy_(source), finished)


def _memory_bytes(processes: int) -> int:
    """Of the machine's memory, the part of one process."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // processes


def collect(here: Here) -> dict[str, Any]:
    """The rates of this process, measured while the others measure theirs."""
    me = here.meeting.me
    if here.shared["backend"] == "nccl":
        index = me.local % torch.cuda.device_count()
        torch.cuda.set_device(index)
        properties = torch.cuda.get_device_properties(index)
        device, memory, sizes, name = f"cuda:{index}", properties.total_memory, _ON_GPU, properties.name
        finished: Callable[[], None] = torch.cuda.synchronize
        dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    else:
        beside = sum(member.node == me.node for member in here.meeting.members)
        device, memory, sizes, name = "cpu", _memory_bytes(beside), _ON_CPU, "CPU"
        finished = lambda: None  # noqa: E731
        dtypes = {"fp32": torch.float32}
    first = next(iter(dtypes.values()))
    return {
        "device": name,
        "memory_bytes": memory,
        "products": {key: product_rate(sizes, dtype, device, finished) for key, dtype in dtypes.items()},
        "attention": attention_rate(sizes, first, device, finished),
        "memory": copy_rate(sizes, device, finished),
    }


def compare(answers: Answers, here: Here) -> Outcome:
    """Warns of a machine with a process that computes, or moves memory, much slower than the median of all."""
    share = _SLOW if here.shared["backend"] == "nccl" else _SLOW_CPU
    rates = {
        "matrix products": {one: next(iter(answer["products"].values())) / 1e12 for one, answer in answers.items()},
        "memory": {one: answer["memory"] / 1e9 for one, answer in answers.items()},
    }
    units = {"matrix products": "TFLOP/s", "memory": "GB/s"}
    slow: dict[str, list[str]] = {}
    for what, by_member in rates.items():
        middle = statistics.median(by_member.values())
        for member, rate in by_member.items():
            if rate < share * middle:
                line = f"process {member.local}: {what} {rate:.3g} {units[what]}, the median is {middle:.3g}"
                slow.setdefault(member.node, []).append(line)
    hint = "every step waits for the slowest rank: is another program running there, is its clock or power limited?"
    findings = [
        Finding(node, "speed", WARN, "; ".join(slow[node]), hint) if node in slow else Finding(node, "speed", OK, "")
        for node in dict.fromkeys(member.node for member in answers)
    ]
    return Outcome(findings, _line(rates, units), {"ranks": [_figures(one, answer) for one, answer in answers.items()]})


def _line(rates: dict[str, dict[Member, float]], units: dict[str, str]) -> str:
    parts = [f"{what} {min(of.values()):.3g} to {max(of.values()):.3g} {units[what]}" for what, of in rates.items()]
    return f"{'; '.join(parts)} a process, all at once"


def _figures(member: Member, answer: dict[str, Any]) -> dict[str, Any]:
    return {"node": member.node, "process": member.local, **answer}
