"""How many samples each step has: always as many, or in the stages of ``--step-batch-size-schedule``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from megatron_cod.args import MegatronArgs
from megatron_cod.common.numbers import parse_count
from megatron_cod.errors import UserError

_SCHEDULE = "--step-batch-size-schedule"


@dataclass(frozen=True)
class BatchSizes:
    """Stages (first sample, samples a step); a step has the size of the stage that the samples before it reach into."""

    stages: tuple[tuple[int, int], ...]

    @property
    def constant(self) -> bool:
        return len(self.stages) == 1

    @property
    def last(self) -> int:
        """Of the last stage."""
        return self.stages[-1][1]

    def _run(self, steps: int | None, samples: int | None, consumed: int) -> tuple[int, int]:
        """(steps made, samples consumed) from ``consumed`` on, until either limit is reached."""
        made = 0
        ends = [first for first, _ in self.stages[1:]] + [None]
        for (_, size), end in zip(self.stages, ends, strict=True):
            if end is not None and consumed >= end:
                continue
            limits = [] if steps is None else [steps - made]
            limits += [-(-(bound - consumed) // size) for bound in (end, samples) if bound is not None]
            more = max(0, min(limits))
            made, consumed = made + more, consumed + more * size
        return made, consumed

    def after(self, steps: int, consumed: int = 0) -> int:
        """Samples consumed after so many steps, the first of which finds ``consumed`` behind it."""
        return self._run(steps, None, consumed)[1]

    def until(self, samples: int) -> tuple[int, int]:
        """(steps, samples) of the fewest steps that consume ``samples``."""
        return self._run(None, samples, 0)


def _stages(schedule: str, seq_length: int) -> BatchSizes:
    found = []
    for entry in schedule.replace(",", " ").split():
        match = re.fullmatch(r"([^:]+):([^:]+)", entry)
        if match is None:
            raise UserError(f"{_SCHEDULE}: {entry!r} is not TOKENS:BATCH, as in '0:64 1B:128'")
        try:
            threshold = 0 if match[1] == "0" else parse_count(match[1])
            found.append((threshold // seq_length, parse_count(match[2])))
        except ValueError as error:
            raise UserError(f"{_SCHEDULE}: {error}") from None
    found.sort()
    if not found or found[0][0] != 0:
        raise UserError(f"{_SCHEDULE} {schedule!r} does not begin at 0 tokens")
    for (before, small), (after, large) in pairwise(found):
        if before == after:
            raise UserError(f"{_SCHEDULE} {schedule!r} has two batch sizes from sample {after} on")
        if large < small:
            raise UserError(f"{_SCHEDULE} {schedule!r}: Megatron's batch sizes cannot shrink, from {small} to {large}")
    return BatchSizes(tuple(found))


def ramp_up(given: list[Any], full: int, seq_length: int) -> str:
    """``--rampup-batch-size START INCREMENT SAMPLES`` as a ``--step-batch-size-schedule``.

    Megatron 0.19.2 reads the former and ignores it. As earlier versions had it: from START to the full batch, each size for
    an equal share of SAMPLES.
    """
    start, increment, samples = (int(value) for value in given)
    if start < 1 or increment < 1 or samples < 1 or start >= full or (full - start) % increment:
        raise UserError(
            f"--rampup-batch-size {start} {increment} {samples}: --global-batch-size {full} must be a whole number of "
            f"increments above the start"
        )
    count = (full - start) // increment
    firsts = [-(Fraction(-number * samples, count) // 1) for number in range(count + 1)]
    stages = {first: start + number * increment for number, first in enumerate(firsts)}
    return " ".join(f"{first * seq_length}:{size}" for first, size in stages.items())


def batch_sizes(args: MegatronArgs) -> BatchSizes:
    """Of the run that the arguments describe, before or after Megatron's validation.

    UserError for a schedule that cannot be read, or where no batch size is given.
    """
    if args.step_batch_size_schedule:
        if not args.seq_length:
            raise UserError(f"{_SCHEDULE} counts tokens: give --seq-length")
        return _stages(args.step_batch_size_schedule, args.seq_length)
    if not args.global_batch_size:
        raise UserError("--global-batch-size is missing: how many samples a step has")
    return BatchSizes(((0, args.global_batch_size),))


def planned(args: MegatronArgs) -> tuple[int, int]:
    """(steps, samples) of the whole run, as Megatron will count them."""
    sizes = batch_sizes(args)
    if args.train_iters:
        return args.train_iters, sizes.after(args.train_iters)
    assert args.train_samples  # checked at the start
    if sizes.constant:
        steps = args.train_samples // sizes.last
        return steps, steps * sizes.last
    return sizes.until(args.train_samples)
