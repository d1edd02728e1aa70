"""How many operators (CPU) or kernels (GPU) a layer runs, and how large their operands are, scheme by scheme."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# Nothing is computed in these.
_VIEWS = {"view", "reshape", "t", "transpose", "permute", "detach", "as_strided", "expand", "slice", "select", "alias"}
_VIEWS |= {"unsqueeze", "squeeze", "split", "chunk", "_unsafe_view", "narrow", "lift_fresh", "flatten", "unbind"}
_VIEWS |= {"empty", "empty_like", "empty_strided", "new_empty", "resolve_conj", "resolve_neg", "result_type", "item"}
Counts = Counter[tuple[str, str]]
"""(operator, "vector" or "activation") -> how often."""


def _size(shapes: list[list[int]], vector: int) -> str:
    largest = max((torch.Size(shape).numel() for shape in shapes if shape), default=0)
    return "vector" if largest <= vector else "activation"


def count_operators(run: Callable[[], object], vector: int) -> Counts:
    """Operators of one call of ``run``: "vector" ones have no operand of more than ``vector`` elements.

    The operators that are called by no other one are counted; on a GPU the kernels below each, with its operands' size.
    """
    run()  # what happens only once must not count
    activities = [ProfilerActivity.CPU]
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True) as profiler:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    counts: Counts = Counter()
    for event in profiler.events():
        if event.device_type != DeviceType.CPU or not event.name.startswith("aten::") or _is_called(event):
            continue
        name = event.name.removeprefix("aten::")
        number = _kernels(event) if on_gpu else int(_computes(name, event))
        if number:
            counts[name, _size(event.input_shapes, vector)] += number
    return counts


def _computes(name: str, event: Any) -> bool:
    """Whether it does more than make a view of its operand; a conversion to the dtype that it has does not."""
    return bool(event.cpu_children) if name in ("to", "contiguous") else name not in _VIEWS


def _is_called(event: Any) -> bool:
    """Whether another operator called this one."""
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith("aten::"):
            return True
        parent = parent.cpu_parent
    return False


def _kernels(event: Any) -> int:
    return len(event.kernels) + sum(_kernels(child) for child in event.cpu_children)


def difference(counts: Counts, reference: Counts, layers: int) -> dict[tuple[str, str], float]:
    """Operators a layer more (or fewer) than the reference has."""
    keys = sorted(counts.keys() | reference.keys())
    return {key: (counts[key] - reference[key]) / layers for key in keys if counts[key] != reference[key]}


def table(counts: Mapping[str, Counts], reference: str, layers: int) -> str:
    """Totals a layer, and what each arm has more than the reference, as text."""
    lines = []
    for name, found in counts.items():
        totals: Counter[str] = Counter()
        for (_, size), number in found.items():
            totals[size] += number
        per_layer = ", ".join(f"{totals[size] / layers:.1f} {size}-sized" for size in ("activation", "vector"))
        lines.append(f"{name}: {per_layer} operators a layer, forward and backward")
        if name != reference:
            more = difference(found, counts[reference], layers)
            lines += [f"    {number:+.2f} {operator} ({size})" for (operator, size), number in more.items()]
            lines += [] if more else [f"    the same as {reference}"]
    return "\n".join(lines)
