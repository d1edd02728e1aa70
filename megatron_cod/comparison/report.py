"""From the outcomes of a comparison to a table: Markdown and CSV, with the spread over seeds and what is within noise."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_cod.analysis.metrics import PARAMETERS, TRAIN_LOSS, VALID_LOSS, perplexity
from megatron_cod.comparison.runs import Outcome


@dataclass(frozen=True)
class Row:
    """One arm over its seeds. Losses in nats per token; those of diverged seeds are omitted from the means."""

    name: str
    valid: tuple[float, ...]
    train: tuple[float, ...]
    variance: float | None
    """Of the residual stream after the last layer, mean over seeds."""
    parameters: int
    diverged: tuple[str, ...]
    """``seed N: how`` for each seed that diverged."""

    @property
    def mean(self) -> float | None:
        """Mean validation loss over the seeds that did not diverge."""
        return statistics.fmean(self.valid) if self.valid else None


def row_of(name: str, outcomes: Mapping[int, Outcome]) -> Row:
    """Sum up an arm; outcomes: seed -> what its run measured."""
    good = [outcome.metrics for outcome in outcomes.values() if outcome.diverged is None]
    variances = [list(metrics.stream_variance().values())[-1] for metrics in good if metrics.stream_variance()]
    ends = [metrics.series(TRAIN_LOSS)[1][-20:] for metrics in good]
    some = next(iter(outcomes.values())).metrics
    return Row(
        name=name,
        valid=tuple(loss for metrics in good if (loss := metrics.last(VALID_LOSS)) is not None),
        train=tuple(statistics.fmean(end) for end in ends if end),
        variance=statistics.fmean(variances) if variances else None,
        parameters=int(some.last(PARAMETERS) or 0),
        diverged=tuple(f"seed {seed}: {one.diverged}" for seed, one in outcomes.items() if one.diverged),
    )


def pooled_deviation(rows: Sequence[Row]) -> float | None:
    """Standard deviation of the validation loss over seeds, all arms together; None without two seeds of any arm."""
    freedom = sum(len(row.valid) - 1 for row in rows if len(row.valid) > 1)
    if not freedom:
        return None
    squares = sum(statistics.variance(row.valid) * (len(row.valid) - 1) for row in rows if len(row.valid) > 1)
    return (squares / freedom) ** 0.5


def noise(deviation: float, one: Row, other: Row) -> float:
    """Two standard errors of the difference of two arms' means, in nats."""
    return 2.0 * deviation * (1 / len(one.valid) + 1 / len(other.valid)) ** 0.5


def _conclusion(row: Row, best: Row | None, deviation: float | None) -> str:
    if row.mean is None or best is None or best.mean is None:
        return "diverged"
    note = f", {len(row.diverged)} diverged" if row.diverged else ""
    if row is best:
        return f"lowest{note}"
    behind = row.mean - best.mean
    if deviation is None:
        return f"+{behind:.4f}, one seed{note}"
    inside = behind <= noise(deviation, row, best)
    return f"+{behind:.4f}{', within noise' if inside else ''}{note}"


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, lowest mean validation loss first, and what its words mean."""
    ordered = sorted(rows, key=lambda row: float("inf") if row.mean is None else row.mean)
    best = ordered[0] if ordered and ordered[0].mean is not None else None
    deviation = pooled_deviation(rows)
    lines = [
        "| arm | valid loss | over seeds | perplexity | train loss | variance after last layer | against the lowest |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ordered:
        cells = [row.name, "-", "-", "-", "-", "-"]
        if row.mean is not None:
            spread = " ".join(f"{loss:.4f}" for loss in row.valid)
            variance = "-" if row.variance is None else f"{row.variance:.3g}"
            cells = [row.name, f"{row.mean:.4f}", spread, f"{perplexity(row.mean):.2f}"]
            cells += [f"{statistics.fmean(row.train):.4f}", variance]
        lines.append("| " + " | ".join([*cells, _conclusion(row, best, deviation)]) + " |")
    lines.append("")
    if deviation is None:
        lines.append("One seed each: nothing here says how much of a difference is noise.")
    else:
        lines.append(
            f'The standard deviation over seeds, all arms together, is {deviation:.4f} nats. "Within noise": closer to '
            f"the lowest than two standard errors of the difference. Train loss: mean of the last 20 reports."
        )
    lines += [f"Diverged: {row.name}, {how}." for row in ordered for how in row.diverged]
    return "\n".join(lines) + "\n"


def as_csv(outcomes: Mapping[str, Mapping[int, Outcome]]) -> str:
    """A line for every run: arm, seed, losses, variance, seconds, and how it diverged."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["arm", "seed", "valid_loss", "train_loss", "variance_last_layer", "parameters", "seconds", "diverged"]
    )
    for name, seeds in outcomes.items():
        for seed, outcome in seeds.items():
            row = row_of(name, {seed: Outcome(outcome.metrics, None, outcome.seconds)})
            variance = "" if row.variance is None else f"{row.variance:.6g}"
            valid, train = ("" if not values else f"{values[0]:.6f}" for values in (row.valid, row.train))
            how = outcome.diverged or ""
            writer.writerow([name, seed, valid, train, variance, row.parameters, f"{outcome.seconds:.1f}", how])
    return out.getvalue()
