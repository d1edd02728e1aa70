"""What a search found, as text for people and as plain values for programs."""

from dataclasses import asdict
from typing import Any

from megatron_cod.common.amounts import GIB
from megatron_cod.planner.layouts import Layout
from megatron_cod.planner.machine import Machine
from megatron_cod.planner.report import format_seconds, time_as_json
from megatron_cod.planner.suggest import MARGIN, Candidate, Suggestion
from megatron_cod.rehearsal.report import text_table

_HEADING = (
    *("TP", "PP", "VPP", "CP", "EP", "micro-batch", "recompute"),
    *("step", "tokens/s a GPU", "MFU", "GiB", "bubble", "exposed communication"),
)


def _sizes(layout: Layout) -> tuple[str, ...]:
    sizes = (layout.tensor, layout.pipeline, layout.virtual, layout.context, layout.expert, layout.micro_batch)
    return (*map(str, sizes), layout.recompute)


def _row(one: Candidate) -> tuple[str, ...]:
    step = one.step
    split = step.busiest.split
    return (
        *_sizes(one.layout),
        format_seconds(step.seconds),
        f"{step.tokens_per_gpu:,.0f}",
        f"{step.mfu:.1%}",
        f"{one.memory / GIB:.1f}",
        f"{split.bubble / step.seconds:.1%}",
        f"{split.communication / step.seconds:.1%}",
    )


def short(layout: Layout) -> str:
    """A layout in few words."""
    virtual = f" ({layout.virtual})" if layout.virtual > 1 else ""
    more = [f"CP {layout.context}"] if layout.context > 1 else []
    more += [f"EP {layout.expert}"] if layout.expert > 1 else []
    more += [f"micro-batch {layout.micro_batch}"]
    more += [f"recompute {layout.recompute}"] if layout.recompute != "none" else []
    return f"TP {layout.tensor}, PP {layout.pipeline}{virtual}, {', '.join(more)}"


def format_suggestion(found: Suggestion, machine: Machine) -> str:
    """The ten best, the next ones with reasons, and what would help."""
    lines = [
        f"the fastest of {found.searched:,} layouts on {machine.name} that fit with {MARGIN:.0%} of the memory free "
        "(bubble and communication: of the busiest stage):",
        *text_table([_HEADING, *map(_row, found.best)]),
        "",
        "not among them:",
        *(f"  {short(loser.layout)}: {loser.why}" for loser in found.losers),
    ]
    lines += ["", "what would help the first one:", *(f"  {hint}" for hint in found.hints)] if found.hints else []
    lines += ["", "flags of the first one:", f"  {' '.join(found.best[0].layout.flags(found.has_experts))}"]
    return "\n".join(lines)


def suggestion_as_json(found: Suggestion) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "best": [
            {"layout": asdict(one.layout), "memory": one.memory, "time": time_as_json(one.step)} for one in found.best
        ],
        "losers": [{"layout": asdict(one.layout), "why": one.why} for one in found.losers],
        "searched": found.searched,
        "hints": list(found.hints),
    }
