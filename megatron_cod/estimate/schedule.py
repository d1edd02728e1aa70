"""Megatron's pipeline schedules as lists: what a stage does in which order, what is in flight, how long it waits.

1F1B without virtual stages, interleaved 1F1B with them (``megatron.core.pipeline_parallel.schedules``).
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A forward or backward pass of one micro-batch through one virtual stage, all from 0."""

    forward: bool
    microbatch: int
    chunk: int


def stage_tasks(stages: int, stage: int, chunks: int, microbatches: int, group: int | None = None) -> list[Task]:
    """What pipeline stage ``stage`` of ``stages`` does in one step, in order.

    chunks: virtual stages a pipeline stage holds. group: contiguous micro-batches a virtual stage takes in turn
    (Megatron's ``--microbatch-group-size-per-virtual-pipeline-stage``; default: the number of stages).
    """
    group = group or stages
    order: list[tuple[int, int]] = []
    for first in range(0, microbatches, group):
        members = range(first, min(first + group, microbatches))
        order += [(microbatch, chunk) for chunk in range(chunks) for microbatch in members]
    ahead = stages - stage - 1
    warmup = min(ahead if chunks == 1 else 2 * ahead + (chunks - 1) * group, len(order))
    forwards = [Task(True, microbatch, chunk) for microbatch, chunk in order]
    backwards = [Task(False, microbatch, chunks - 1 - chunk) for microbatch, chunk in order]
    tasks, left = forwards[:warmup], len(order) - warmup
    for index in range(left):
        tasks += [forwards[warmup + index], backwards[index]]
    return tasks + backwards[left:]


def peak_in_flight(tasks: Sequence[Task], cost: Sequence[float]) -> tuple[int, float, tuple[int, ...]]:
    """The most that forwards hold for backwards still to come: micro-batch passes, cost, and passes a chunk at the peak.

    cost: what one micro-batch holds in each chunk, in any unit; the peak is taken of the cost.
    """
    held = [0] * len(cost)
    passes, running, best = 0, 0.0, (0.0, tuple(held))
    for task in tasks:
        step = 1 if task.forward else -1
        held[task.chunk] += step
        running += step * cost[task.chunk]
        passes = max(passes, sum(held))
        if running > best[0]:
            best = (running, tuple(held))
    return passes, *best


def bubble_ratio(stages: int, chunks: int, microbatches: int) -> float:
    """Time a stage waits over the time it computes: (p - 1) / (m * v), for stages that all take equally long."""
    return (stages - 1) / (microbatches * chunks)


def bubble_share(stages: int, chunks: int, microbatches: int) -> float:
    """The same wait as a share of the whole step: (p - 1) / (m * v + p - 1)."""
    return (stages - 1) / (microbatches * chunks + stages - 1)
