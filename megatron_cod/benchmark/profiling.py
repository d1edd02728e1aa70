"""Where the time of a step goes: self time by operator under torch.profiler, contestants side by side."""

from collections import Counter
from collections.abc import Callable, Mapping

from torch.profiler import ProfilerActivity, profile

from megatron_cod.common.lists import aligned

_STEPS = 3
_LINES = 25


def operator_table(steps: Mapping[str, Callable[[], object]]) -> str:
    """Milliseconds a step in the operators that take most, as text. Steps take turns; the first is the reference.

    The profiler itself costs a few microseconds a call: the table explains a ratio, it does not measure one.
    """
    milliseconds: dict[str, Counter[str]] = {name: Counter() for name in steps}
    for _ in range(_STEPS):
        for name, step in steps.items():
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                step()
            for event in profiler.key_averages():
                milliseconds[name][event.key] += event.self_cpu_time_total / 1e3 / _STEPS
    reference, *others = steps
    largest = Counter(milliseconds[reference])
    for name in others:
        largest |= milliseconds[name]
    lines = [("ms in operator", *steps, *(f"{name} - {reference}" for name in others))]
    for key in ["sum", *(key for key, _ in largest.most_common(_LINES))]:
        times = {name: found.total() if key == "sum" else found[key] for name, found in milliseconds.items()}
        more = [f"{times[name] - times[reference]:+.1f}" for name in others]
        lines.append((key[:56], *(f"{times[name]:.1f}" for name in steps), *more))
    return "\n".join(aligned(lines))
