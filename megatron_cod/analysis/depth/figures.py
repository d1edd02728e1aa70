"""Figures of one or several models: curves over depth, and the heat map of angular distances. Safe for the colour-blind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
_MARKERS = ("o", "s", "^", "D", "v", "P")
Results = Mapping[str, dict[str, Any]]
"""Name of a model -> what ``measure`` found."""


def _curves(found: dict[str, Any]) -> dict[str, tuple[list[float], list[float], list[float | None]]]:
    """Panel -> (positions, values, standard errors)."""
    depth = found["depth"]
    blocks = [float(number) for number in range(1, depth + 1)]
    curves: dict[str, tuple[list[float], list[float], list[float | None]]] = {}

    def estimates(name: str, panel: str, positions: list[float]) -> None:
        if name in found:
            curves[panel] = (positions, [one["mean"] for one in found[name]], [one["error"] for one in found[name]])

    if "stream" in found:
        rows, points = found["stream"], [float(row["after"]) for row in found["stream"]]
        for key, panel in (("variance", "variance"), ("variance_without_first", "variance, without the first token")):
            curves[panel] = (points, [row[key]["mean"] for row in rows], [row[key]["error"] for row in rows])
        curves["largest / median activation"] = (
            points,
            [row["largest_over_median"] for row in rows],
            [None] * len(rows),
        )
    estimates("removal", "rise of the loss without the block", blocks)
    estimates("permutation", "rise of the loss, block swapped with the next", blocks[:-1])
    if "causal" in found:
        curves["causal score"] = (blocks[:-1], found["causal"], [None] * (depth - 1))
    estimates("jacobian", "|J - I| / |I|", blocks)
    if "angle, last token" in found:
        mean, error = found["angle, last token"]["mean"], found["angle, last token"]["error"]
        curves["angular distance to the next point"] = (
            blocks,
            [mean[point][point + 1] for point in range(depth)],
            [error[point][point + 1] for point in range(depth)],
        )
    estimates("logit lens", "logit lens loss", [float(point) for point in range(depth + 1)])
    if "usefulness" in found:
        rise = [loss - found["loss"]["mean"] for loss in found["usefulness"]["loss"]]
        curves["rise of the loss, block made linear"] = (blocks, rise, [None] * depth)
    return curves


_LOG = ("variance", "variance, without the first token", "largest / median activation")


def plot_curves(results: Results, folder: Path) -> list[Path]:
    """A PNG a panel, all models in each; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves = {name: _curves(found) for name, found in results.items()}
    panels = dict.fromkeys(panel for held in curves.values() for panel in held)
    files = []
    for number, panel in enumerate(panels, 1):
        figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
        for index, (name, held) in enumerate(curves.items()):
            if panel not in held:
                continue
            positions, values, errors = held[panel]
            style = {"color": _COLOURS[index % 6], "marker": _MARKERS[index % 6], "markersize": 4, "linewidth": 1.3}
            bars = None if None in errors else errors
            axis.errorbar(
                positions, values, bars, label=name, capsize=2, linestyle=("-", "--", ":")[index % 3], **style
            )
        if panel in _LOG:
            axis.set_yscale("log")
        elif panel.startswith("rise"):
            lowest = min(value for held in curves.values() if panel in held for value in held[panel][1])
            axis.set_yscale("log") if lowest > 0 else axis.set_yscale("symlog", linthresh=0.01)
            if lowest <= 0:
                axis.axhline(0.0, color="black", linewidth=0.8)
        axis.set(xlabel="block", ylabel=panel)
        axis.grid(alpha=0.3)
        if len(results) > 1:
            axis.legend()
        path = folder / f"{number:02d}_{_slug(panel)}.png"
        figure.savefig(path, dpi=100)
        plt.close(figure)
        files.append(path)
    return files


def plot_heat_maps(results: Results, folder: Path) -> list[Path]:
    """The angular distance of all pairs, raw, one PNG a model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    files = []
    shown = [found["angle, last token"]["mean"] for found in results.values() if "angle, last token" in found]
    largest = max((one for mean in shown for row in mean for one in row), default=1.0)  # one scale for all
    for name, found in results.items():
        if "angle, last token" not in found:
            continue
        mean, depth = found["angle, last token"]["mean"], found["depth"]
        # Row n, column l: from the stream before block l to the one n blocks on; what is beyond the end stays white.
        grid = [
            [mean[start][start + n] if start + n <= depth else float("nan") for start in range(depth)]
            for n in range(1, depth + 1)
        ]
        figure, axis = plt.subplots(figsize=(6.4, 5.2), layout="constrained")
        extent = (0.5, depth + 0.5, 0.5, depth + 0.5)
        image = axis.imshow(grid, origin="lower", cmap="viridis", vmin=0.0, vmax=largest, extent=extent, aspect="auto")
        axis.set(xlabel="block l", ylabel="n blocks on", title=f"{name}: angular distance d(l, n), last token, raw")
        figure.colorbar(image, label="arccos(cosine) / pi")
        path = folder / f"angles_{_slug(name)}.png"
        figure.savefig(path, dpi=100)
        plt.close(figure)
        files.append(path)
    return files


def _slug(text: str) -> str:
    return "_".join("".join(one if one.isalnum() else " " for one in text.lower()).split())
