"""The figure of a comparison: loss curves, and residual-stream variance per global layer."""

from collections.abc import Mapping
from pathlib import Path

from megatron_cod.analysis.metrics import TRAIN_LOSS, VALID_LOSS, Metrics


def _smooth(values: list[float], span: int) -> list[float]:
    """Mean over the last ``span`` values."""
    return [sum(values[max(0, i - span + 1) : i + 1]) / min(i + 1, span) for i in range(len(values))]


def plot_comparison(runs: Mapping[str, Metrics], path: str | Path, title: str) -> None:
    """Write a PNG with two panels for the named runs; loss left, variance per layer right (log scale)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (loss_axis, variance_axis) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for index, (name, metrics) in enumerate(runs.items()):
        color = f"C{index}"
        steps, values = metrics.series(TRAIN_LOSS)
        span = max(1, len(values) // 40)
        loss_axis.plot(steps, _smooth(values, span), color=color, linewidth=1.4, label=name)
        valid_steps, valid_values = metrics.series(VALID_LOSS)
        loss_axis.plot(valid_steps, valid_values, "o", color=color, markersize=6, markeredgecolor="black")
        variance = metrics.stream_variance()
        if variance:
            variance_axis.plot(list(variance), list(variance.values()), "o-", color=color, markersize=4, label=name)
    loss_axis.set(xlabel="step", ylabel="loss (nats per token)", title="training loss (line), validation (dots)")
    variance_axis.set(xlabel="global layer", ylabel="variance over channels", title="residual stream after each layer")
    variance_axis.set_yscale("log")
    for axis in (loss_axis, variance_axis):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
