"""A predicted step as text for people and as plain values for programs."""

from dataclasses import asdict
from typing import Any

from megatron_cod.planner.split import NAMES, Split
from megatron_cod.planner.step import StepTime
from megatron_cod.rehearsal.report import text_table

LABELS = {
    "products": "matrix products",
    "attention": "attention",
    "memory": "memory-bound operators",
    "head": "embedding, output layer and loss",
    "recomputation": "recomputation",
    "tensor": "TP/SP communication",
    "context": "CP communication",
    "expert": "EP communication",
    "bubble": "pipeline bubble",
    "pipeline": "PP communication",
    "data": "DP communication",
    "optimizer": "optimizer",
}
"""Field of ``Split`` -> its name in reports. Communication is what computing does not hide."""


def format_seconds(seconds: float) -> str:
    """Seconds, or milliseconds below one."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def split_rows(split: Split) -> list[tuple[str, str, str]]:
    """Name, time and share of the parts that a stage has."""
    whole = split.total
    parts = ((LABELS[name], getattr(split, name)) for name in NAMES)
    return [(name, format_seconds(value), f"{value / whole:.1%}") for name, value in parts if value]


def format_time(step: StepTime) -> str:
    """The prediction as lines of text."""
    stage = step.busiest
    lines = [
        "",
        f"time on {step.machine}, predicted: {format_seconds(step.seconds)} a step, "
        f"{step.tokens_per_gpu:,.0f} tokens/s a GPU, {step.tflops:,.0f} TFLOP/s a GPU, MFU {step.mfu:.1%}",
        f"where it goes on stage {stage.stage}, the busiest (communication: what computing does not hide):",
        *text_table([("part", "time", "share"), *split_rows(stage.split)]),
        f"  hidden communication, beside them: {format_seconds(stage.hidden)}",
    ]
    if len(step.stages) > 1:
        shares = [one.split.bubble / step.seconds for one in step.stages]
        lines.append(f"  pipeline bubble of the stages: {min(shares):.1%} to {max(shares):.1%}")
    lines.append("docs/planner.md has the model and its error on published runs")
    return "\n".join(lines)


def time_as_json(step: StepTime) -> dict[str, Any]:
    """The prediction as plain values; seconds."""
    return asdict(step) | {
        "busiest_stage": step.busiest.stage,
        "tokens_per_second_per_gpu": step.tokens_per_gpu,
        "tflops_per_gpu": step.tflops,
        "mfu": step.mfu,
    }
