"""The result of ``compare.py`` as text and as plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from megatron_cod.common.lists import aligned, listed

if TYPE_CHECKING:
    from megatron_cod.analysis.compare import CheckpointResult, MetricsResult, Tolerance

WORST = 20

# Where a run ran and wrote: on one line, since they are expected to differ.
_PLACES = ("parallel", "rank", "world", "path", "dir", "save", "load", "shards", "pipeline", "stages", "address")


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.3e}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need be; the first one flush left."""
    return "\n".join("  " + line for line in aligned(rows))


def metrics_text(result: MetricsResult) -> str:
    lines = [f"Metrics: {len(result.steps)} common training steps, {result.steps[0]}..{result.steps[-1]}"]
    for side, steps, tags in zip("AB", result.steps_only, result.tags_only, strict=True):
        if steps:
            lines.append(f"  only {side} has training steps {listed(steps)}")
        if tags:
            lines.append(f"  only {side} has: {listed(tags)}")
    body = [("", "points", "first differing step", "max abs diff", "at step", "both NaN")]
    for row in result.rows:
        first = "" if row.first_step is None else str(row.first_step)
        worst = str(row.worst_step) if row.max_abs_diff else ""
        nans = str(row.nan_steps or "")
        body.append((row.tag, str(row.steps), first, _number(row.max_abs_diff), worst, nans))
    lines.append(_table(body))
    if result.first_step is None:
        lines.append("  the losses do not differ")
    else:
        row = next(row for row in result.rows if row.first_step == result.first_step and row.first_values)
        a, b = row.first_values or (0.0, 0.0)
        lines.append(f"  first differing step: {result.first_step} ({row.tag}: {a!r} in A, {b!r} in B)")
    return "\n".join(lines)


def _layers_table(result: CheckpointResult) -> str:
    """The largest difference of each layer, by weights and kind of optimizer state."""
    most: dict[tuple[int | None, str], float] = {}
    for row in result.rows:
        most[row.layer, row.kind] = max(most.get((row.layer, row.kind), 0.0), row.max_abs_diff)
    kinds = sorted({kind for _, kind in most}, key=lambda kind: (kind != "weights", kind))
    layers = sorted({layer for layer, _ in most}, key=lambda layer: layer or math.inf)
    body = [["max abs diff by layer", *kinds]]
    for layer in layers:
        cells = [_number(most[layer, kind]) if (layer, kind) in most else "" for kind in kinds]
        body.append(["no layer" if layer is None else f"layer {layer}", *cells])
    return _table(body)


def checkpoint_text(result: CheckpointResult, show_all: bool) -> str:
    differ = [row for row in result.rows if not row.equal]
    lines = [f"Checkpoints: step {result.steps[0]} of A, step {result.steps[1]} of B"]
    lines += [f"  differs: {problem}" for problem in result.problems]
    lines += [f"  note: {note}" for note in result.notes]
    lines.append(f"  {len(result.rows)} tensors counted per layer, {len(differ)} differ")
    # Those that fail first, then by size.
    worst = sorted(result.rows, key=lambda row: (row.equal, -row.max_abs_diff))
    shown = result.rows if show_all else [row for row in worst if row.max_abs_diff or row.note or row.nans][:WORST]
    if shown:
        body = [("tensor", "layer", "max abs diff", "largest abs value", "", "")]
        for row in shown:
            nans = f"{row.nans} NaN in both" if row.nans else ""
            remark = ", ".join(filter(None, [nans, row.note]))
            state = "" if row.equal else "differs"
            layer = str(row.layer or "-")
            body.append((row.name, layer, _number(row.max_abs_diff), _number(row.largest), state, remark))
        lines += ["", _table(body)]
    if any(row.max_abs_diff for row in result.rows):
        lines += ["", _layers_table(result)]
    places = [name for name in result.arguments if any(word in name for word in _PLACES)]
    for name in [name for name in result.arguments if name not in places]:
        a, b = result.arguments[name]
        lines.append(f"  saved argument {name}: {a} in A, {b} in B")
    if places:
        lines.append(f"  saved arguments of layout and place that differ: {', '.join(places)}")
    return "\n".join(lines)


def conclusion(metrics: MetricsResult | None, checkpoints: CheckpointResult | None, tolerance: Tolerance) -> str:
    reasons = []
    if checkpoints and checkpoints.schemes[0] != checkpoints.schemes[1]:
        reasons.append("another norm scheme")
    if metrics and not metrics.equal:
        losses = "" if metrics.first_step is None else f", losses from step {metrics.first_step}"
        reasons.append(f"{sum(row.first_step is not None for row in metrics.rows)} scalars{losses}")
    if checkpoints and (count := sum(not row.equal for row in checkpoints.rows)):
        reasons.append(f"{count} of {len(checkpoints.rows)} tensors")
    if checkpoints and checkpoints.problems:
        reasons.append(f"{len(checkpoints.problems)} differences that are not of values")
    if reasons:
        return "DIFFERENT: " + "; ".join(reasons)
    most = max(result.max_abs_diff for result in (metrics, checkpoints) if result)
    if most == 0:
        return "EQUAL to the bit"
    absolute = f"{tolerance.absolute:g}" if tolerance.absolute else ""
    relative = f"{tolerance.relative:g} of the largest value" if tolerance.relative else ""
    allowed = " + ".join(filter(None, (absolute, relative)))
    return f"EQUAL within {allowed}, not to the bit: the largest difference is {most:.3e}"


def plain(value: Any) -> Any:
    """For JSON, which has no infinity and no NaN: those become text, as does what is no plain value."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str | None) else str(value)
