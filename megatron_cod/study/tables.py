"""The tables of a study, as texts: arms at their tuned rates, loss against rate, loss against depth, what was not run."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from megatron_cod.study.jobs import Job
from megatron_cod.study.results import Result
from megatron_cod.study.scheduler import Results, best_of, curve_of, finals_of, runnable
from megatron_cod.study.shapes import Shape
from megatron_cod.study.statistics import Difference, deviation, paired
from megatron_cod.study.study_file import BASELINES, Study
from megatron_cod.study.tuner import DIVERGED, sensitivity


@dataclass(frozen=True)
class Table:
    """Titles and rows of texts."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        """With its title as a heading."""
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        parts = [f"## {self.title}", *([body] if self.rows else []), *([self.note] if self.note else [])]
        return "\n\n".join(parts) + "\n"


def baselines(study: Study) -> list[str]:
    """The Pre-LN arms that the others are compared with."""
    return [one for one in BASELINES if one in study.arms]


def losses_of(finals: Mapping[int, Result]) -> dict[int, float | None]:
    """Seed -> final loss; None where the run diverged."""
    return {seed: result.loss for seed, result in finals.items()}


def difference(study: Study, results: Results, shape: Shape, arm: str, other: str) -> Difference | None:
    """Of the final runs of two arms, each at its own tuned rate; None until both are complete."""
    ours, theirs = (losses_of(finals_of(study, results, shape, one)) for one in (arm, other))
    return paired(ours, theirs) if len(ours) == len(theirs) == len(study.seeds) else None


def start_of(results: Results, shape: Shape) -> float:
    """The loss at initialization: the mean of all runs' first."""
    return statistics.fmean(
        result.start_loss for job, result in results.items() if job.shape == shape and result.start_loss is not None
    )


def comparison(study: Study, results: Results, shape: Shape) -> Table:
    """A row for every arm, also of failed ones."""
    measured = (
        "valid loss",
        "std over seeds",
        "by seed",
        "bits per byte",
        "last layer's variance",
        "sensitivity to lr",
    )
    head = ("arm", "tuned lr", *measured, *(f"against {one}" for one in baselines(study)))
    rows = [_row(study, results, shape, arm) for arm in study.arms]
    return Table(f"{shape.name}: arms at their tuned rates", head, tuple(rows))


def _row(study: Study, results: Results, shape: Shape, arm: str) -> tuple[str, ...]:
    best, finals = best_of(study, results, shape, arm), finals_of(study, results, shape, arm)
    good = [result for result in finals.values() if result.loss is not None]
    rate = (
        _untuned(study, results, shape, arm)
        if best is None
        else _rate(best.rate) + (f" ({best.edge})" if best.edge else "")
    )
    against = [_against(study, results, shape, arm, other) for other in baselines(study)]
    return (arm, rate, *_measured(finals, good), _sensitivity(study, results, shape, arm), *against)


def _measured(finals: Mapping[int, Result], good: list[Result]) -> tuple[str, ...]:
    each = " ".join("diverged" if one.loss is None else f"{one.loss:.4f}" for one in finals.values()) or "-"
    spread = deviation(losses_of(finals))
    if not good:
        return ("-", "-", each, "-", "-")
    bits = [one.bits_per_byte for one in good if one.bits_per_byte is not None]
    last = statistics.fmean(list(one.variance.values())[-1] for one in good if one.variance)
    return (
        f"{statistics.fmean(one.loss for one in good if one.loss is not None):.4f}",
        "-" if spread is None else f"{spread:.4f}",
        each,
        f"{statistics.fmean(bits):.4f}" if bits else "-",
        f"{last:.3g}",
    )


def _untuned(study: Study, results: Results, shape: Shape, arm: str) -> str:
    curve = curve_of(study, results, shape, arm)
    all_diverged = bool(curve) and all(loss == DIVERGED for loss in curve.values())
    return "every rate diverged" if all_diverged else "search not finished"


def _sensitivity(study: Study, results: Results, shape: Shape, arm: str) -> str:
    curve = curve_of(study, results, shape, arm)
    value = sensitivity(curve, study.grid.rates, start_of(results, shape)) if curve else None
    return "-" if value is None else f"{value:.4f}"


def _against(study: Study, results: Results, shape: Shape, arm: str, other: str) -> str:
    """The difference with its interval, the two rates where they are not the same, and the decision."""
    if arm == other:
        return ""
    found = difference(study, results, shape, arm, other)
    if found is None:
        return "not complete"
    parts = []
    if found.mean is not None:
        parts.append(f"{found.mean:+.4f}")
    if found.interval is not None:
        parts.append(f"[{found.interval[0]:+.4f}, {found.interval[1]:+.4f}]")
    rates = [best.rate for one in (arm, other) if (best := best_of(study, results, shape, one)) is not None]
    if len(set(rates)) > 1:
        parts.append(f"(lr {_rate(rates[0])} against {_rate(rates[1])})")
    return " ".join(parts) + (", " if parts else "") + _verdict(found, study.rule.standard_errors)


def _verdict(found: Difference, errors: float) -> str:
    """With few seeds the interval is wider than the rule's standard errors, and may include 0: then the cell has a note."""
    verdict, interval = found.verdict(errors), found.interval
    includes = interval is not None and interval[0] <= 0 <= interval[1]
    return (
        f"{verdict} by the rule, but the interval includes 0"
        if includes and verdict in ("better", "worse")
        else verdict
    )


def _rate(rate: float) -> str:
    return f"{rate:.3g}"


def rates_table(study: Study, results: Results, shape: Shape) -> Table:
    """Validation loss of the tuning runs at every rate that was tried."""
    curves = {arm: curve_of(study, results, shape, arm) for arm in study.arms}
    rates = sorted({rate for curve in curves.values() for rate in curve})
    rows = []
    for arm, curve in curves.items():
        best = best_of(study, results, shape, arm)
        rows.append((arm, *(_loss(curve.get(rate), best is not None and rate == best.rate) for rate in rates)))
    note = f"Tuning seeds {', '.join(map(str, study.tuning_seeds))}. In bold: the tuned rate."
    return Table(f"{shape.name}: loss against learning rate", ("arm", *map(_rate, rates)), tuple(rows), note)


def _loss(loss: float | None, best: bool) -> str:
    if loss is None:
        return "-"
    text = "diverged" if loss == DIVERGED else f"{loss:.4f}"
    return f"**{text}**" if best else text


def depth_table(study: Study, results: Results) -> Table:
    """Final loss of each arm at its tuned rate, for each shape; the parameters are equal if the file has depths."""
    rows = []
    for arm in study.arms:
        cells = [_mean(losses_of(finals_of(study, results, shape, arm))) for shape in study.shapes]
        rows.append((arm, *cells))
    head = ("arm", *(f"{shape.name} ({shape.non_embedding:,})" for shape in study.shapes))
    return Table("Loss against depth at the tuned rate", head, tuple(rows), "In brackets: non-embedding parameters.")


def _mean(losses: Mapping[int, float | None]) -> str:
    good = [loss for loss in losses.values() if loss is not None]
    if not losses:
        return "-"
    lost = len(losses) - len(good)
    text = f"{statistics.fmean(good):.4f}" if good else "diverged"
    return text + (f" ({lost} of {len(losses)} diverged)" if lost and good else "")


def diverged_table(results: Results) -> Table:
    """Every run that diverged, and how."""
    rows = [(*_named(job), result.diverged) for job, result in results.items() if result.diverged]
    return Table("Runs that diverged", ("shape", "arm", "lr", "seed", "how"), tuple(rows), "" if rows else "None.")


def missing_table(study: Study, results: Results, failures: Mapping[Job, str]) -> Table:
    """What is known to be needed and was not run."""
    rows = [(*_named(job), failures.get(job, "not run yet")) for job in runnable(study, results)]
    return Table("What was not run", ("shape", "arm", "lr", "seed", "why"), tuple(rows), "" if rows else "Nothing.")


def _named(job: Job) -> tuple[str, str, str, str]:
    return job.shape.name, job.arm, _rate(job.rate), str(job.seed)


def all_tables(study: Study, results: Results, failures: Mapping[Job, str]) -> list[Table]:
    """The report's tables, in order."""
    shapes = [shape for shape in study.shapes if any(job.shape == shape for job in results)]
    return [
        *(comparison(study, results, shape) for shape in shapes),
        *([depth_table(study, results)] if len(study.shapes) > 1 else []),
        *(rates_table(study, results, shape) for shape in shapes),
        diverged_table(results),
        missing_table(study, results, failures),
    ]


def ordered(study: Study, results: Results) -> list[tuple[Job, Result]]:
    """By shape, arm, rate and seed, so that files do not depend on which run ended first."""
    places = {arm: place for place, arm in enumerate(study.arms)}
    return sorted(
        results.items(),
        key=lambda one: (study.shapes.index(one[0].shape), places[one[0].arm], one[0].rate, one[0].seed),
    )


def runs_csv(study: Study, results: Results) -> str:
    """A line for every run."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fields = ("loss", "bits_per_byte", "train_loss", "start_loss", "parameters", "diverged")
    writer.writerow(["shape", "arm", "lr", "seed", "kind", *fields, "variance_last_layer"])
    for job, result in ordered(study, results):
        kind = "tuning" if job.seed in study.tuning_seeds else "final"
        values = ["" if (value := getattr(result, name)) is None else value for name in fields]
        last = list(result.variance.values())[-1] if result.variance else ""
        writer.writerow([job.shape.name, job.arm, f"{job.rate:g}", job.seed, kind, *values, last])
    return out.getvalue()


def raw_lines(study: Study, results: Results) -> str:
    """Every record, a line of JSON each: what all tables and figures are made from."""
    return "".join(json.dumps(result.record()) + "\n" for _, result in ordered(study, results))


def read_raw(study: Study, lines: Iterable[str]) -> dict[Job, Result]:
    """What ``raw_lines`` wrote."""
    shapes = {shape.name: shape for shape in study.shapes}
    found = [Result(**json.loads(line)) for line in lines if line.strip()]
    return {Job(shapes[one.shape], one.arm, one.rate, one.seed): one for one in found}
