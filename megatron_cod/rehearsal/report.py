"""A plan as text for people and as JSON for programs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from megatron_cod.args import MegatronArgs
from megatron_cod.common.amounts import GIB
from megatron_cod.common.lists import aligned
from megatron_cod.estimate.advice import advice, largest
from megatron_cod.estimate.memory import RESERVED, Memory
from megatron_cod.rehearsal.plan import ChunkRow, Plan


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of right-aligned columns; the first row is the heading."""
    return ["  " + line for line in aligned(rows, left=0)]


def span(numbers: Sequence[int]) -> str:
    """Consecutive layer numbers, short."""
    if not numbers:
        return "none"
    return f"{numbers[0]}..{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])


def _layers(plan: Plan, chunk: ChunkRow) -> str:
    ahead = [number for number in chunk.layers if number > plan.num_layers]
    parts = [span([number for number in chunk.layers if number <= plan.num_layers])]
    parts += [f"mtp {span(ahead)}"] if ahead else []
    parts = ["embedding"] * chunk.embedding + parts + ["loss"] * chunk.loss
    return " + ".join(part for part in parts if part != "none") or "none"


def _factors(chunk: ChunkRow) -> str:
    if not chunk.factors:
        return "-"
    first, last = chunk.factors[0], chunk.factors[-1]
    return f"{first:.4f}..{last:.4f}" if len(chunk.factors) > 1 else f"{first:.4f}"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def memory_cells(memory: Memory) -> tuple[str, ...]:
    """GiB of weights, gradients, optimizer, activations (buffers among them), the optimizer's step, the peak."""
    activations = memory.activations + memory.buffers
    parts = (memory.weights, memory.gradients, memory.optimizer, activations, memory.step, memory.total)
    return tuple(map(_gib, parts))


def format_plan(plan: Plan) -> str:
    """The plan as lines of text."""
    sizes = ", ".join(f"{name} {size}" for name, size in plan.sizes.items())
    lines = [
        f"{plan.world_size:,} ranks: {sizes}",
        f"model: {plan.parameters:,} parameters, {plan.num_layers} layers, norm scheme {plan.scheme}",
        "",
        "who holds what (the same on every rank of a stage):",
    ]
    heading = ("stage", "virtual", "layers", "depth factors", "parameters/rank", "activations/micro-batch, GiB")
    body = [heading]
    for stage in plan.stages:
        for chunk in stage.chunks:
            place = (str(stage.stage), str(chunk.virtual_stage), _layers(plan, chunk), _factors(chunk))
            body.append((*place, f"{chunk.parameters:,}", _gib(chunk.activations)))
    lines += text_table(body)
    lines += ["", "memory of a rank in GiB (activations and the optimizer's step are an estimate):"]
    parts = ("weights", "gradients", "optimizer", "activations", "step", "peak")
    rows: list[tuple[str, ...]] = [("stage", "parameters/rank", "in flight", *parts)]
    for stage in plan.stages:
        start = (str(stage.stage), f"{stage.parameters:,}", str(stage.in_flight))
        rows.append((*start, *memory_cells(stage.memory)))
    lines += text_table(rows)
    lines += [
        f"  peak: weights, gradients, optimizer, and the larger of activations and the optimizer's step; torch's allocator "
        f"reserves {RESERVED[0]:.0%} to {RESERVED[1]:.0%} more",
        "",
        f"step: {plan.global_batch_size:,} sequences of {plan.seq_length:,} = {plan.tokens_per_step:,} tokens, in "
        f"{plan.microbatches} micro-batches of {plan.micro_batch_size} on each of {plan.sizes['DP']:,} replicas",
        f"pipeline bubble: {plan.bubble_ratio:.1%} of the computing time, (p - 1) / (m v); "
        f"{plan.bubble_share:.1%} of the whole step",
    ]
    if plan.steps is None:
        lines.append("run: no length given (--train-iters, --train-samples or --tokens)")
    else:
        lines.append(f"run: {plan.steps:,} steps, {plan.tokens:,} tokens")
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def device_warnings(plan: Plan, args: MegatronArgs, device: float) -> list[str]:
    """A line for each stage whose peak does not fit into ``device`` bytes, or may not for what the allocator reserves."""
    found = []
    for stage in plan.stages:
        memory = stage.memory
        needs = f"WARNING: stage {stage.stage} needs {memory.total / GIB:.2f} GiB"
        has = f"the device has {device / GIB:.2f}"
        if memory.total > device:
            found.append(f"{needs}, {has}: {largest(memory)}; what would help: {advice(args, memory)}")
        elif memory.total * (1 + RESERVED[1]) > device:
            found.append(f"{needs} and up to {RESERVED[1]:.0%} more, {has}: it may not fit")
    return found


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values; memory in bytes, its sum included."""
    content = asdict(plan)
    for row, stage in zip(content["stages"], plan.stages, strict=True):
        row["memory"]["total"] = stage.memory.total
    return content
