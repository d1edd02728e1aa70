"""The figure of a comparison: loss curves, and residual-stream variance per global layer."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_cod.analysis.metrics import TRAIN_LOSS, VALID_LOSS, Metrics


def smooth(values: list[float], span: int) -> list[float]:
    """Mean over the last ``span`` values."""
    return [sum(values[max(0, i - span + 1) : i + 1]) / min(i + 1, span) for i in range(len(values))]


def _mean(series: Sequence[dict[int, float]]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps, and over the seeds the mean, lowest and highest value, at the steps that all have."""
    steps = sorted(set.intersection(*(set(one) for one in series))) if series else []
    values = [[one[step] for one in series] for step in steps]
    return steps, [sum(v) / len(v) for v in values], [min(v) for v in values], [max(v) for v in values]


def plot_comparison(runs: Mapping[str, Sequence[Metrics]], path: str | Path, title: str) -> None:
    """Write a PNG with two panels; loss left, variance per layer right (log scale).

    runs: name -> the runs of its seeds. Lines are means over seeds; bands and bars reach from the lowest to the highest.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (loss_axis, variance_axis) = plt.subplots(1, 2, figsize=(14, 5.5), layout="constrained")
    colors = plt.get_cmap("tab10" if len(runs) <= 10 else "tab20").colors
    late: list[float] = []
    for index, (name, seeds) in enumerate(runs.items()):
        color, dash = colors[index % len(colors)], "--" if index % 2 else "-"
        steps, means, low, high = _mean([metrics.scalars.get(TRAIN_LOSS, {}) for metrics in seeds])
        span = max(1, len(means) // 40)
        loss_axis.plot(steps, smooth(means, span), dash, color=color, linewidth=1.4, label=name)
        late += [value for value in smooth(means, span)[len(means) // 6 :] if math.isfinite(value)]
        if len(seeds) > 1:
            loss_axis.fill_between(steps, smooth(low, span), smooth(high, span), color=color, alpha=0.15, linewidth=0)
        steps, means, low, high = _mean([metrics.scalars.get(VALID_LOSS, {}) for metrics in seeds])
        bars = [[m - a for m, a in zip(means, low, strict=True)], [b - m for m, b in zip(means, high, strict=True)]]
        late += [value for value in (*low, *high) if math.isfinite(value)]
        loss_axis.errorbar(steps, means, bars, fmt="o", color=color, markersize=6, markeredgecolor="black", capsize=3)
        layers, means, low, high = _mean([metrics.stream_variance() for metrics in seeds if metrics.stream_variance()])
        if layers:
            variance_axis.plot(layers, means, "o" + dash, color=color, markersize=4, label=name)
            variance_axis.fill_between(layers, low, high, color=color, alpha=0.15, linewidth=0)
    loss_axis.set(xlabel="step", ylabel="loss (nats per token)", title="training loss (line), validation (dots)")
    if late and min(late) < max(late):
        # The fall of the first steps would press everything that can be compared into a corner.
        margin = 0.05 * (max(late) - min(late))
        loss_axis.set_ylim(min(late) - margin, max(late) + 4 * margin)
    variance_axis.set(xlabel="global layer", ylabel="variance over channels", title="residual stream after each layer")
    variance_axis.set_yscale("log")
    for axis in (loss_axis, variance_axis):
        axis.grid(alpha=0.3)
    figure.legend(*loss_axis.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
