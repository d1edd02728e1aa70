"""Figures of a study. Arms differ by colour, marker and line."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_cod.analysis.panels import panels, save, style
from megatron_cod.study.results import Result
from megatron_cod.study.scheduler import Results, best_of, curve_of, finals_of
from megatron_cod.study.shapes import Shape
from megatron_cod.study.study_file import Study
from megatron_cod.study.tables import losses_of
from megatron_cod.study.tuner import DIVERGED


def loss_against_rate(study: Study, results: Results, path: Path) -> Path:
    """A panel a shape: the tuning runs as lines, final runs as bars from the lowest to the highest seed."""
    figure, axes = panels(len(study.shapes))
    for shape, axis in zip(study.shapes, axes, strict=True):
        seen = [_draw_arm(axis, study, results, shape, place) for place in range(len(study.arms))]
        if not any(seen):
            axis.text(0.5, 0.5, "no runs yet", transform=axis.transAxes, ha="center")
        _limit(axis, [loss for losses in seen for loss in losses])
        axis.set(xscale="log", xlabel="peak learning rate", ylabel="validation loss (nats per token)", title=shape.name)
        _label_rates(axis, study, results, shape)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    return save(figure, path)


def _draw_arm(axis: Any, study: Study, results: Results, shape: Shape, place: int) -> list[float]:
    arm = study.arms[place]
    curve = curve_of(study, results, shape, arm)
    finite = {rate: loss for rate, loss in curve.items() if loss != DIVERGED}
    look = style(place)
    axis.plot(list(finite), list(finite.values()), label=arm, **look)
    for rate in (rate for rate, loss in curve.items() if loss == DIVERGED):
        axis.plot([rate], [0.97], marker="x", color=look["color"], transform=axis.get_xaxis_transform(), markersize=9)
    best, losses = best_of(study, results, shape, arm), _good(finals_of(study, results, shape, arm))
    if best is not None and losses:
        mean = statistics.fmean(losses)
        bars = [[mean - min(losses)], [max(losses) - mean]]
        shifted = best.rate * 1.04 ** (place - (len(study.arms) - 1) / 2)
        axis.errorbar([shifted], [mean], bars, color=look["color"], capsize=4, marker=look["marker"], mfc="white", ms=8)
    return [*finite.values(), *losses]


def _label_rates(axis: Any, study: Study, results: Results, shape: Shape) -> None:
    tried = {rate for arm in study.arms for rate in curve_of(study, results, shape, arm)}
    rates = sorted({*study.grid.rates, *tried})
    axis.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=30, fontsize="small")
    axis.set_xlim(rates[0] / 1.2, rates[-1] * 1.2)
    axis.minorticks_off()


def _limit(axis: Any, losses: Sequence[float]) -> None:
    """Rates far from the best would press everything else into a corner."""
    if not losses:
        return
    low = min(losses)
    high = min(max(losses), low + max(0.1, 3 * (statistics.median(losses) - low)))
    axis.set_ylim(low - 0.06 * (high - low or 1), high + 0.1 * (high - low or 1))


def _good(finals: Mapping[int, Result]) -> list[float]:
    return [loss for loss in losses_of(finals).values() if loss is not None]


def loss_against_depth(study: Study, results: Results, path: Path) -> Path:
    """Final loss at the tuned rate against layers; bars from the lowest to the highest seed."""
    figure, (axis,) = panels(1)
    shapes = sorted(study.shapes, key=lambda shape: shape.layers)
    for place, arm in enumerate(study.arms):
        points = [(shape.layers, _good(finals_of(study, results, shape, arm))) for shape in shapes]
        points = [(layers, losses) for layers, losses in points if losses]
        means = [statistics.fmean(losses) for _, losses in points]
        bars = [
            [mean - min(losses) for mean, (_, losses) in zip(means, points, strict=True)],
            [max(losses) - mean for mean, (_, losses) in zip(means, points, strict=True)],
        ]
        shifted = [layers * 1.015 ** (place - (len(study.arms) - 1) / 2) for layers, _ in points]
        axis.errorbar(shifted, means, bars, label=arm, capsize=4, **style(place))
    sizes = [shape.non_embedding for shape in shapes]
    equal = ", at equal parameters" if max(sizes) < 1.05 * min(sizes) else ""
    axis.set(xscale="log", xlabel=f"layers{equal}", ylabel="validation loss at the tuned rate")
    axis.set_xticks([shape.layers for shape in shapes], [str(shape.layers) for shape in shapes])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return save(figure, path)


def variance_by_layer(study: Study, results: Results, path: Path) -> Path:
    """Variance of the residual stream after each layer: mean of the final runs, else of the best tuning runs."""
    figure, axes = panels(len(study.shapes))
    for shape, axis in zip(study.shapes, axes, strict=True):
        for place, arm in enumerate(study.arms):
            means = _mean_variance(study, results, shape, arm)
            if means:
                axis.plot(list(means), list(means.values()), label=arm, **style(place))
        axis.set(yscale="log", xlabel="layer", ylabel="variance of the residual stream", title=shape.name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize="small")
    return save(figure, path)


def _mean_variance(study: Study, results: Results, shape: Shape, arm: str) -> dict[int, float]:
    best = best_of(study, results, shape, arm)
    runs = list(finals_of(study, results, shape, arm).values())
    if not runs and best is not None:
        runs = [run for job, run in results.items() if (job.shape, job.arm, job.rate) == (shape, arm, best.rate)]
    held = [run.variance for run in runs if run.variance]
    return {int(layer): statistics.fmean(one[layer] for one in held) for layer in held[0]} if held else {}


def removal_by_layer(study: Study, costs: Mapping[tuple[Shape, str], Sequence[float]], path: Path) -> Path:
    """Rise of the loss when a layer is removed, at the tuned rate, from the depth diagnostics."""
    figure, axes = panels(len(study.shapes))
    for shape, axis in zip(study.shapes, axes, strict=True):
        for place, arm in enumerate(study.arms):
            cost = [value for value in costs.get((shape, arm), ()) if math.isfinite(value)]
            if cost:
                axis.plot(range(1, len(cost) + 1), cost, label=arm, **style(place))
        axis.set(xlabel="removed layer", ylabel="rise of the loss (nats per token)", title=shape.name)
        axis.set_yscale("symlog", linthresh=0.01)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize="small")
    return save(figure, path)
