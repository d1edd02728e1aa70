"""Windows through the model: Megatron's forward-only schedule at any layout, and exact sums over all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from megatron.core import mpu
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_cod.data.evaluation.token_sets import TokenSet
from megatron_cod.data.evaluation.windows import Windows, cut_row
from megatron_cod.training.data.context_parallel import cut_to_rank, summed

Micro = dict[str, Tensor]
_ROUND = 64
"""Rows are padded to multiples of this, so that there are few different shapes."""


@dataclass(frozen=True)
class Job:
    """What is measured, and how much at once."""

    sets: Sequence[TokenSet]
    windows: Sequence[Windows]
    """One plan a set."""
    prefix: int | None
    size: int
    """The longest window: ``--seq-length``."""
    micro_batch_size: int
    """Windows of that length in a micro-batch; of shorter ones there are more."""
    micro_batches: int
    """Of one replica, in one call of the schedule at most."""
    unit: int = 1
    """What their number is a multiple of: the pipeline's size where stages are interleaved."""
    multiple: int = 1
    """What lengths are a multiple of: how many parts a row is cut into, by context and sequence parallelism."""

    def predicted(self) -> list[int]:
        """Tokens that each set's loss is the mean of."""
        return [plan.predicted() for plan in self.windows]


@dataclass(frozen=True)
class Call:
    """One call of the schedule: rows (set, window) of every replica."""

    rows: np.ndarray
    """[n, 2]"""
    length: int
    rows_a_micro_batch: int
    micro_batches: int


def plan_calls(job: Job, replicas: int) -> list[Call]:
    """All windows, longest first, so that what is computed together is of about one length."""
    rows = np.concatenate(
        [np.stack([np.full(len(plan), n), np.arange(len(plan))], 1) for n, plan in enumerate(job.windows)]
    )
    lengths = np.concatenate([plan.length for plan in job.windows])
    order = np.argsort(-lengths, kind="stable")
    rows, lengths = rows[order], lengths[order]
    calls, done, unit = [], 0, math.lcm(_ROUND, job.multiple)
    while done < len(rows):
        length = min(-(-int(lengths[done]) // unit) * unit, job.size)
        each = max(1, min(job.micro_batch_size * job.size // length, -(-(len(rows) - done) // replicas)))
        part = rows[done : done + each * job.micro_batches * replicas]
        needed = -(-len(part) // (each * replicas * job.unit)) * job.unit
        calls.append(Call(part, length, each, needed))
        done += len(part)
    return calls


def micro_batch(job: Job, rows: np.ndarray, call: Call) -> Micro:
    """Rows [n, 2] as tensors [rows_a_micro_batch, length]; missing rows and the rest of short ones are padding."""
    shape = (call.rows_a_micro_batch, call.length)
    tokens, labels, counts = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    for place, (number, row) in enumerate(rows):
        inputs, targets, counted = cut_row(job.sets[number].ids, job.windows[number], row, job.prefix)
        tokens[place, : len(inputs)], labels[place, : len(inputs)], counts[place, : len(inputs)] = (
            inputs,
            targets,
            counted,
        )
    positions = np.broadcast_to(np.arange(call.length), shape).copy()
    found = {"tokens": tokens, "labels": labels, "loss_mask": counts, "position_ids": positions}
    return {name: torch.from_numpy(values).cuda() for name, values in found.items()}


def row_sums(mask: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """(nothing that the schedule needs, [b, 2]: each row's loss over its tokens that count, and their number).

    mask, losses: [b, s].
    """
    held = torch.where(mask > 0, losses.double(), 0.0).sum(1)  # not a product: padding may be infinite
    return losses.new_zeros(()), torch.stack([held, mask.double().sum(1)], 1)


def forward_step(iterator: Iterator[Micro], model: torch.nn.Module) -> tuple[Tensor, Callable[..., Any]]:
    """Megatron's ``forward_step_func``."""
    batch = cut_to_rank(next(iterator))
    output = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"], loss_mask=batch["loss_mask"])
    return output, partial(row_sums, batch["loss_mask"])


@dataclass
class Totals:
    """Of each set: loss summed over its tokens, tokens counted, and the windows whose loss is not finite."""

    losses: np.ndarray
    tokens: np.ndarray
    not_finite: list[list[int]]


class Scorer:
    """Adds up on each rank what it computes, and brings the ranks together."""

    def __init__(self, job: Job, model: Sequence[torch.nn.Module]) -> None:
        """model: the chunks on this rank."""
        self._job, self._model = job, list(model)
        self._rank, self._replicas = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
        self.calls = plan_calls(job, self._replicas)
        self._schedule = get_forward_backward_func()
        self._totals = Totals(np.zeros(len(job.sets)), np.zeros(len(job.sets), np.int64), [[] for _ in job.sets])

    def _mine(self, call: Call) -> list[np.ndarray]:
        """This replica's rows of each micro-batch: no row is another's too, and all have as many micro-batches."""
        each = call.rows_a_micro_batch
        starts = [each * (n * self._replicas + self._rank) for n in range(call.micro_batches)]
        return [call.rows[start : start + each] for start in starts]

    @torch.no_grad()
    def run(self, call: Call) -> int:
        """Compute one call; how many tokens it predicts on all ranks. Collective."""
        mine = self._mine(call)

        def batches() -> Iterator[Micro]:
            return (micro_batch(self._job, rows, call) for rows in mine)

        found = self._schedule(
            forward_step_func=forward_step,
            data_iterator=[batches() for _ in self._model] if len(self._model) > 1 else batches(),
            model=self._model,
            num_microbatches=call.micro_batches,
            seq_length=call.length,
            micro_batch_size=call.rows_a_micro_batch,
            forward_only=True,
        )
        for rows, sums in zip(mine, found, strict=False):  # stages before the last find nothing
            self._add(rows, summed(sums).cpu().numpy())
        plans = self._job.windows
        return sum(int(plans[n].length[row] - plans[n].counted[row]) for n, row in call.rows)

    def _add(self, rows: np.ndarray, sums: np.ndarray) -> None:
        for (number, row), (loss, tokens) in zip(rows, sums, strict=False):  # rows of padding come last
            self._totals.losses[number] += loss
            self._totals.tokens[number] += int(tokens)
            if not np.isfinite(loss):
                self._totals.not_finite[number].append(int(row))

    def totals(self) -> Totals | None:
        """Over all ranks, on those of the last stage; None on others."""
        if not mpu.is_pipeline_last_stage(ignore_virtual=True):
            return None
        group = mpu.get_data_parallel_group()
        mine = self._totals
        losses = torch.tensor(mine.losses, dtype=torch.float64, device=torch.cuda.current_device())
        tokens = torch.tensor(mine.tokens, dtype=torch.int64, device=torch.cuda.current_device())
        torch.distributed.all_reduce(losses, group=group)
        torch.distributed.all_reduce(tokens, group=group)
        parts: list[Any] = [None] * self._replicas
        torch.distributed.all_gather_object(parts, mine.not_finite, group=group)
        not_finite = [sorted(row for part in parts for row in part[n]) for n in range(len(self._job.sets))]
        found = Totals(losses.cpu().numpy(), tokens.cpu().numpy(), not_finite)
        assert found.tokens.tolist() == self._job.predicted(), (found.tokens.tolist(), self._job.predicted())
        return found


def measure(job: Job, model: Sequence[torch.nn.Module], done: Callable[[int], None] = lambda _: None) -> Totals | None:
    """All of a job; see ``Scorer.totals``. done: called with the number of tokens that each call predicted. Collective."""
    scorer = Scorer(job, model)
    for call in scorer.calls:
        done(scorer.run(call))
    return scorer.totals()
