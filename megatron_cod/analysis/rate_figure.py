"""The figure of arms that ran at several learning rates: curves, loss against rate, variance of the stream by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_cod.analysis.metrics import TRAIN_LOSS, VALID_LOSS, Metrics
from megatron_cod.analysis.panels import panels, save, style
from megatron_cod.analysis.plots import smooth

_LINES = ("-", ":", "--", "-.")


def plot_rates(runs: Mapping[str, Mapping[float, Metrics]], path: Path, title: str) -> Path:
    """Write a PNG of three panels. runs: arm -> peak rate -> its run; variance is that of each arm's lowest rate."""
    figure, (curves, losses, variance) = panels(3, width=5.4)
    late: list[float] = []
    for place, (arm, by_rate) in enumerate(runs.items()):
        look = style(place)
        for line, (rate, metrics) in zip(_LINES, sorted(by_rate.items()), strict=False):
            late += _curve(curves, metrics, look["color"], line, f"{arm}, lr {rate:g}")
        found = {rate: metrics.last(VALID_LOSS) for rate, metrics in sorted(by_rate.items())}
        losses.plot(list(found), [math.nan if loss is None else loss for loss in found.values()], label=arm, **look)
        layers = by_rate[min(by_rate)].stream_variance()
        variance.plot(list(layers), list(layers.values()), label=arm, **look)
    if late and min(late) < max(late):  # the fall of the first steps would press the rest into a corner
        margin = 0.05 * (max(late) - min(late))
        curves.set_ylim(min(late) - margin, max(late) + margin)
    rates = sorted({rate for by_rate in runs.values() for rate in by_rate})
    curves.set(xlabel="step", ylabel="training loss (nats per token)", title="training loss")
    losses.set(xscale="log", xlabel="peak learning rate", ylabel="validation loss", title="loss against learning rate")
    losses.set_xticks(rates, [f"{rate:g}" for rate in rates])
    losses.minorticks_off()
    variance.set(
        yscale="log", xlabel="layer", ylabel="variance over channels", title=f"residual stream, lr {rates[0]:g}"
    )
    for axis in (curves, losses, variance):
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small")
    figure.suptitle(title)
    return save(figure, path)


def _curve(axis: Any, metrics: Metrics, color: str, line: str, label: str) -> list[float]:
    """Draw the training loss of a run; returns what it is after the first sixth."""
    steps, values = metrics.series(TRAIN_LOSS)
    smoothed = smooth(values, max(1, len(values) // 40))
    axis.plot(steps, smoothed, line, color=color, linewidth=1.3, label=label)
    return [value for value in smoothed[len(smoothed) // 6 :] if math.isfinite(value)]
