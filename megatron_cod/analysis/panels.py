"""What figures share: panels side by side, and a style for each arm (Okabe and Ito's colours, for the colour-blind)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS, _LINES = "osD^vPX*", ("-", "--", "-.", ":")


def style(place: int) -> dict[str, Any]:
    """Colour, marker and line of the arm at this place, for ``Axes.plot``."""
    return {
        "color": _COLORS[place % len(_COLORS)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": _LINES[place % len(_LINES)],
        "markersize": 5,
        "linewidth": 1.5,
    }


def panels(count: int, width: float = 6.0) -> tuple[Any, list[Any]]:
    """A figure with ``count`` panels, each ``width`` inches wide."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, count, figsize=(width * count, 4.6), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def save(figure: Any, path: Path) -> Path:
    """Write a PNG without its date and version, and close the figure."""
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path
