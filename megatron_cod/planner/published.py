"""Predictions of the published runs beside what was measured: the tables of docs/planner.md, and the fit of constants."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from megatron_cod.args import MegatronArgs
from megatron_cod.planner.machine import BUILT_IN, Machine
from megatron_cod.planner.published_fp8_rows import FP8_ROWS
from megatron_cod.planner.published_rows import PUBLISHED, PublishedRow, is_fitted
from megatron_cod.planner.stages import model_flops
from megatron_cod.planner.step import StepTime, step_time
from megatron_cod.rehearsal.launch import read_launch


@dataclass(frozen=True)
class Compared:
    """One row, its measured and its predicted step."""

    row: PublishedRow
    args: MegatronArgs
    measured: float
    predicted: StepTime

    @property
    def error(self) -> float:
        """Of the predicted seconds: 0.1 is 10% too slow."""
        return self.predicted.seconds / self.measured - 1


def row_args(row: PublishedRow) -> MegatronArgs:
    """The arguments of a published run, checked as a launch checks them."""
    args = read_launch(row.words(), row.gpus).args
    for name, value in row.kernels.items():
        assert hasattr(args, name)
        setattr(args, name, value)
    return args


def flops_with_recomputation(args: MegatronArgs) -> float:
    """Of one step, by equation 3 of arXiv 2104.04473: four forward passes' worth, F = 96 B s l h^2 (1 + s/6h + V/16lh)."""
    layers, hidden, length = args.num_layers, args.hidden_size, args.seq_length
    share = 1 + length / (6 * hidden) + args.padded_vocab_size / (16 * layers * hidden)
    return 96.0 * args.global_batch_size * length * layers * hidden**2 * share


def measured_seconds(row: PublishedRow, args: MegatronArgs) -> float:
    """Of a step, from seconds or from TFLOP/s as their source counts them."""
    if row.seconds:
        return row.seconds
    flops = flops_with_recomputation(args) if row.counts_recomputation else model_flops(args)
    return flops / (row.gpus * row.tflops * 1e12)


def compared(row: PublishedRow, args: MegatronArgs, machine: Machine | None = None) -> Compared:
    """machine: in place of the row's."""
    predicted = step_time(args, machine or BUILT_IN[row.machine], row.software)
    return Compared(row, args, measured_seconds(row, args), predicted)


def half(row: PublishedRow) -> str:
    """To which part of the rows it belongs: fitted, held out, or FP8, of which none is fitted."""
    if row in FP8_ROWS:
        return "FP8"
    return "fitted" if is_fitted(row) else "held out"


def all_compared(rows: Iterable[PublishedRow] = PUBLISHED + FP8_ROWS) -> list[Compared]:
    """Every row."""
    return [compared(row, row_args(row)) for row in rows]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, for values without ties."""
    assert len(first) == len(second) > 1

    def ranks(values: Sequence[float]) -> list[int]:
        order = sorted(values)
        return [order.index(value) for value in values]

    count = len(first)
    squares = sum((one - other) ** 2 for one, other in zip(ranks(first), ranks(second), strict=True))
    return 1 - 6 * squares / (count * (count**2 - 1))


def fit_products(machine: str, rows: Sequence[tuple[PublishedRow, MegatronArgs]]) -> float:
    """The efficiency of products with the least mean square of log errors, each model counted once, to 0.01."""

    def loss(share: float) -> float:
        known = BUILT_IN[machine]
        changed = replace(known, efficiency=replace(known.efficiency, products=share))
        by_model: dict[str, list[float]] = {}
        for row, args in rows:
            error = compared(row, args, changed).error
            by_model.setdefault(row.model, []).append(math.log1p(error) ** 2)
        return sum(sum(each) / len(each) for each in by_model.values()) / len(by_model)

    low, high = 40, 95  # the loss has one minimum: more rate, less time in every row
    while high - low > 2:
        third = (high - low) // 3 or 1
        first, second = low + third, high - third
        if loss(first / 100) < loss(second / 100):
            high = second
        else:
            low = first
    return min((one / 100 for one in range(low, high + 1)), key=loss)


def _cells(one: Compared) -> tuple[str, ...]:
    args, row = one.args, one.row
    layout = f"{args.tensor_model_parallel_size} x {args.pipeline_model_parallel_size}"
    virtual = args.virtual_pipeline_model_parallel_size
    layout += f" ({virtual})" if virtual else ""
    layout += f", CP {args.context_parallel_size}" if args.context_parallel_size > 1 else ""
    layout += f", EP {args.expert_model_parallel_size}" if args.num_experts else ""
    return (
        row.model,
        f"{row.gpus:,}",
        layout,
        f"{args.global_batch_size:,}",
        f"{one.measured:.2f}",
        f"{one.predicted.seconds:.2f}",
        f"{one.error:+.1%}",
        half(row),
    )


def _summary(machine: str, part: str, errors: Sequence[float]) -> str:
    sizes = [abs(error) for error in errors]
    return f"| {machine} | {part} | {len(sizes)} | {median(sizes):.1%} | {max(sizes):.1%} |"


def rank_line(machine: str, rows: Sequence[Compared]) -> str:
    """How well the order by TFLOP/s is predicted."""
    found = [one for one in rows if one.row.machine == machine]
    measured = [one.predicted.tflops * (1 + one.error) for one in found]
    correlation = rank_correlation(measured, [one.predicted.tflops for one in found])
    return f"- rank correlation of TFLOP/s a GPU, {machine}, {len(found)} runs: {correlation:.2f}"


def published_table(rows: Sequence[Compared]) -> str:
    """Both tables of docs/planner.md as Markdown: the errors of the halves, and of each run."""
    lines = ["| machine | half | runs | median error | worst |", "| --- | --- | --- | --- | --- |"]
    for machine in dict.fromkeys(one.row.machine for one in rows):
        for part in ("fitted", "held out", "FP8"):
            found = [one.error for one in rows if one.row.machine == machine and half(one.row) == part]
            if found:
                lines.append(_summary(machine, part, found))
    dense = [one.error for one in rows if half(one.row) == "held out" and not one.args.num_experts]
    lines.append(_summary("both", "held out, dense models", dense))
    lines += ["", *(rank_line(machine, rows) for machine in dict.fromkeys(one.row.machine for one in rows))]
    heading = ("model", "GPUs", "TP x PP (VPP)", "batch", "measured, s", "predicted, s", "error", "half")
    lines += ["", f"| {' | '.join(heading)} |", f"| {' | '.join('---' for _ in heading)} |"]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(one))} |" for one in rows)])
