"""Whether two runs are the same: their scalars step by step, their checkpoints tensor by tensor and layer by layer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from megatron_cod.analysis.metrics import TRAIN_LOSS, VALID_LOSS, Metrics
from megatron_cod.checkpoint.tensors import MASTER, WEIGHTS, Checkpoint, Name, Slice, kind_of, pieces, weight_of
from megatron_cod.errors import UserError
from megatron_cod.schemes.table import STOCK

MAIN_TAGS = (TRAIN_LOSS, VALID_LOSS)
# Scalars about the speed and place of a training, not its result: another machine has other ones.
_TIMING = re.compile(
    r"\btime\b|\bmem|memory|throughput|flop|/s\b|per[-_ ]sec|elapsed|world-size|\bMFU\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Tolerance:
    """How far apart two values may be: absolute + relative * the largest absolute value of their tensor."""

    absolute: float = 0.0
    relative: float = 0.0

    def allows(self, difference: float, largest: float) -> bool:
        return difference == 0 or difference <= self.absolute + self.relative * largest

    @property
    def exact(self) -> bool:
        return self.absolute == 0 and self.relative == 0


@dataclass(frozen=True)
class ScalarRow:
    """One scalar over the steps that both runs have. Differences are absolute; a NaN against a number is infinite."""

    tag: str
    steps: int
    first_step: int | None
    """The first step that differs by more than the tolerance."""
    first_values: tuple[float, float] | None
    max_abs_diff: float
    worst_step: int
    nan_steps: int
    """Steps where both are NaN, which counts as equal."""


@dataclass
class MetricsResult:
    rows: list[ScalarRow]
    tags_only: tuple[list[str], list[str]]
    """Scalars of A alone, of B alone. Reported; no difference."""
    steps_only: tuple[list[int], list[int]]
    """Training steps of A alone, of B alone. Reported; no difference."""
    steps: list[int]
    """Training steps that both have."""

    @property
    def first_step(self) -> int | None:
        """The first step at which the training or validation loss differs."""
        return min((r.first_step for r in self.rows if r.tag in MAIN_TAGS and r.first_step is not None), default=None)

    @property
    def equal(self) -> bool:
        return all(row.first_step is None for row in self.rows)

    @property
    def max_abs_diff(self) -> float:
        return max((row.max_abs_diff for row in self.rows), default=0.0)


def _apart(a: float, b: float) -> float:
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    gap = abs(a - b)
    return math.inf if math.isnan(gap) else gap


def compare_metrics(a: Metrics, b: Metrics, tolerance: Tolerance) -> MetricsResult:
    """Compare the scalars of two runs over their common steps. UserError when they share no training step."""
    ours, theirs = (set(run.scalars.get(TRAIN_LOSS, {})) for run in (a, b))
    if not ours & theirs:
        raise UserError(f"the runs share no training step: A has {_span(ours)}, B has {_span(theirs)}")
    tags = [tag for tag in a.scalars if tag in b.scalars and not _TIMING.search(tag)]
    rows = []
    for tag in sorted(tags, key=lambda tag: (tag not in MAIN_TAGS, tag)):
        left, right = a.scalars[tag], b.scalars[tag]
        gaps = {step: _apart(left[step], right[step]) for step in left if step in right}
        if not gaps:
            continue
        far = [s for s, gap in gaps.items() if not tolerance.allows(gap, max(abs(left[s]), abs(right[s])))]
        first, worst = (far[0] if far else None), max(gaps, key=lambda step: gaps[step])
        values = None if first is None else (left[first], right[first])
        both_nan = sum(math.isnan(left[step]) and math.isnan(right[step]) for step in gaps)
        rows.append(ScalarRow(tag, len(gaps), first, values, gaps[worst], worst, both_nan))
    return MetricsResult(
        rows,
        tags_only=(sorted(a.scalars.keys() - b.scalars.keys()), sorted(b.scalars.keys() - a.scalars.keys())),
        steps_only=(sorted(ours - theirs), sorted(theirs - ours)),
        steps=sorted(ours & theirs),
    )


def _span(steps: set[int]) -> str:
    return f"{min(steps)}..{max(steps)}" if steps else "none"


@dataclass(frozen=True)
class TensorRow:
    """One tensor of one global layer (1-based; None: of no layer)."""

    name: str
    layer: int | None
    max_abs_diff: float
    largest: float
    """Largest finite absolute value in either."""
    nans: int
    """Elements that are NaN in both, which counts as equal."""
    equal: bool
    note: str = ""

    @property
    def kind(self) -> str:
        return kind_of(self.name)


@dataclass
class CheckpointResult:
    steps: tuple[int | None, int | None]
    schemes: tuple[str, str]
    rows: list[TensorRow] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Differences that are not of values: a tensor that only one holds, another shape, another step."""
    notes: list[str] = field(default_factory=list)
    arguments: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Saved arguments that differ. For information: layouts and paths are no difference of the result."""

    @property
    def equal(self) -> bool:
        return self.schemes[0] == self.schemes[1] and not self.problems and all(row.equal for row in self.rows)

    @property
    def max_abs_diff(self) -> float:
        return max((row.max_abs_diff for row in self.rows), default=0.0)


def tensor_difference(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float, int]:
    """Largest absolute difference (infinite for NaN or infinity against another value), largest finite absolute
    value, elements that are NaN in both."""
    precise = torch.promote_types(a.dtype, b.dtype)
    precise = torch.promote_types(precise, torch.float32) if precise.is_floating_point else torch.float64
    a, b = a.to(precise), b.to(precise)
    if not a.numel():
        return 0.0, 0.0, 0
    largest = max(float(x.abs().nan_to_num_(nan=0.0, posinf=0.0).max()) for x in (a, b))
    if torch.equal(a, b):
        return 0.0, largest, 0
    nans = a.isnan() & b.isnan()
    gap = (a - b).abs_().masked_fill_((a == b) | nans, 0.0)
    return float(gap.nan_to_num_(nan=math.inf, posinf=math.inf).max()), largest, int(nans.sum())


def compare_checkpoints(
    a: Checkpoint, b: Checkpoint, tolerance: Tolerance, progress: Callable[[int, int], None] = lambda done, total: None
) -> CheckpointResult:
    """Compare every tensor of two checkpoints, saved at any layout. progress: elements compared, elements in all."""
    common = a.common_state(), b.common_state()
    result = _recorded(common)
    pairs = _pairs(a, b, result)
    total = sum(math.prod(left.shape) for left, _ in pairs.values())
    vocabulary = _vocabulary(common)
    done = 0
    for (name, layer), (left, right) in pairs.items():
        shape, note = left.shape, ""
        if left.shape != right.shape:
            if not _padded_vocabulary(name, left, right, vocabulary):
                where = f"{name}, layer {layer}" if layer else name
                result.problems.append(f"{where}: shape {list(left.shape)} in A, {list(right.shape)} in B")
                continue
            shape = (vocabulary or 0, *shape[1:])
            note = f"only the {vocabulary} rows of the vocabulary: {left.shape[0]} and {right.shape[0]} with padding"
        if left.dtype != right.dtype:
            note = f"{left.dtype} in A, {right.dtype} in B".replace("torch.", "")
        gap = largest = 0.0
        nans = 0
        for start, stop in pieces(shape):
            one = tensor_difference(a.read(left, start, stop), b.read(right, start, stop))
            gap, largest, nans = max(gap, one[0]), max(largest, one[1]), nans + one[2]
            done += math.prod(shape[1:]) * (stop - start)
            progress(done, total)
        # To the bit means the same type; within a tolerance bf16 and fp32 can be compared.
        equal = tolerance.allows(gap, largest) and not (tolerance.exact and left.dtype != right.dtype)
        result.rows.append(TensorRow(name, layer, gap, largest, nans, equal, note))
    return result


def _pairs(a: Checkpoint, b: Checkpoint, result: CheckpointResult) -> dict[Name, tuple[Slice, Slice]]:
    """What to compare with what; what only one side has becomes a problem or a note."""
    optimizers = a.has_optimizer(), b.has_optimizer()
    if optimizers[0] != optimizers[1]:
        result.notes.append(f"only {'A' if optimizers[0] else 'B'} holds optimizer states: not compared")
    pairs: dict[Name, tuple[Slice, Slice]] = {}
    alone: dict[tuple[str, str], list[int | None]] = {}
    borrowed: set[str] = set()
    for full in sorted(a.slices.keys() | b.slices.keys(), key=lambda full: (full[0], full[1] or 0)):
        name = full[0]
        if kind_of(name) != WEIGHTS and not all(optimizers):
            continue
        sides = [a.slices.get(full), b.slices.get(full)]
        for side, checkpoint in enumerate((a, b)):
            weight = checkpoint.slices.get((weight_of(name), full[1]))
            if sides[side] is None and kind_of(name) == MASTER and weight and weight.dtype == torch.float32:
                sides[side] = weight  # an fp32 weight is its own master copy; the distributed optimizer copies it too
                borrowed.add("AB"[side])
        left, right = sides
        if left is None or right is None:
            alone.setdefault((name, "A" if right is None else "B"), []).append(full[1])
        else:
            pairs[full] = left, right
    for holder in sorted(borrowed):
        result.notes.append(
            f"{holder} keeps no fp32 copies of its fp32 weights: the other's are compared with the weights"
        )
    for (name, holder), layers in alone.items():
        numbers = [layer for layer in layers if layer is not None]
        where = f" (layers {', '.join(map(str, numbers))})" if numbers else ""
        result.problems.append(f"{name}{where}: only in {holder}")
    return pairs


def _vocabulary(common: tuple[dict[str, Any], dict[str, Any]]) -> int | None:
    """The tokenizer's size where both set the same."""
    ours, theirs = (getattr(state.get("args"), "vocab_size", None) for state in common)
    return ours if ours == theirs else None


def _padded_vocabulary(name: str, left: Slice, right: Slice, vocabulary: int | None) -> bool:
    """Whether two shapes differ only in the rows that a tensor-parallel layout pads the vocabulary with."""
    is_table = name.endswith(("word_embeddings.weight", "output_layer.weight"))
    same = left.shape[1:] == right.shape[1:] and len(left.shape) == len(right.shape)
    return bool(is_table and same and vocabulary and vocabulary <= min(left.shape[0], right.shape[0]))


def _recorded(common: tuple[dict[str, Any], dict[str, Any]]) -> CheckpointResult:
    """Steps, schemes and arguments as the checkpoints record them."""
    ours, theirs = (vars(state["args"]) if state.get("args") is not None else {} for state in common)
    # A checkpoint without a scheme is stock Megatron's.
    schemes = ours.get("norm_scheme", STOCK), theirs.get("norm_scheme", STOCK)
    result = CheckpointResult((common[0].get("iteration"), common[1].get("iteration")), schemes)
    if not ours or not theirs:
        result.notes.append("a checkpoint records no arguments: schemes and arguments are not compared")
        result.schemes = (schemes[0], schemes[0])
        ours = theirs = {}
    names = sorted(ours.keys() | theirs.keys())
    result.arguments = {n: (ours.get(n), theirs.get(n)) for n in names if ours.get(n) != theirs.get(n)}
    adam = _adam_step(common[0]), _adam_step(common[1])
    for what, steps in {"step": result.steps, "Adam's step": adam}.items():
        if None not in steps and steps[0] != steps[1]:
            result.problems.append(f"{what}: {steps[0]} in A, {steps[1]} in B")
    return result


def _adam_step(common: dict[str, Any]) -> float | None:
    """Where Megatron 0.19.2 keeps it: once, or in each parameter group with the distributed optimizer."""
    optimizer = common.get("optimizer") or {}
    step = (optimizer.get("state") or {}).get("common_step")
    if step is None:
        groups = (optimizer.get("optimizer") or {}).get("param_groups") or [{}]
        step = groups[0].get("step")
    return None if step is None else float(step)
