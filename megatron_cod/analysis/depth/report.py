"""Results as files: JSON, CSV, PNGs, and one HTML page with everything in it."""

import csv
import html
import io
import json
from pathlib import Path
from typing import Any

from megatron_cod.analysis.depth.figures import Results, plot_curves, plot_heat_maps
from megatron_cod.analysis.depth.summary import effective_depth, sentences
from megatron_cod.analysis.page import figure, page, table
from megatron_cod.errors import UserError

RESULT = "depth.json"

_MEANING = """
<p>Every figure is measured on the tokens named above; bars are standard errors over sequences. The heat map shows raw
arccos(cosine)/pi, not normalised by row. Blocks that are omitted, swapped or replaced keep the depth factor of their own
place. Linear maps are fitted on other tokens than those judged on. A summary counts blocks over fixed thresholds; look at
the curves before believing a count.</p>
"""


def read_result(folder: Path) -> dict[str, Any]:
    """What an earlier run found. UserError when the folder holds none."""
    path = folder / RESULT
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        raise UserError(f"{folder} holds no {RESULT} of megatron-cod analyze") from None
    if not isinstance(found, dict) or "depth" not in found:
        raise UserError(f"{path} is not a result of megatron-cod analyze")
    return found


def table_rows(found: dict[str, Any]) -> list[dict[str, float | int | bool | None]]:
    """A row a block, of every per-block number."""
    rows = []
    for number in range(1, found["depth"] + 1):
        row: dict[str, float | int | bool | None] = {"block": number}
        if "stream" in found:
            after = found["stream"][number]
            row["variance after"] = after["variance"]["mean"]
            row["variance after, without the first token"] = after["variance_without_first"]["mean"]
            row["largest / median"] = after["largest_over_median"]
        if "angle, last token" in found:
            row["angle to next"] = found["angle, last token"]["mean"][number - 1][number]
        for name in ("removal", "permutation", "jacobian"):
            if name in found and number <= len(found[name]):
                row[name] = found[name][number - 1]["mean"]
                row[f"{name} error"] = found[name][number - 1]["error"]
        if "causal" in found and number <= len(found["causal"]):
            row["causal score"] = found["causal"][number - 1]
        if "usefulness" in found:
            row["loss, block made linear"] = found["usefulness"]["loss"][number - 1]
            row["useful"] = found["usefulness"]["useful"][number - 1]
        if "logit lens" in found:
            row["logit lens loss"] = found["logit lens"][number]["mean"]
        rows.append(row)
    return rows


def write_report(results: Results, folder: Path) -> Path:
    """All files of a report into ``folder``; with several models, overlaid. Returns the HTML page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in results.items():
        stem = "depth" if len(results) == 1 else f"depth_{name}"
        (folder / f"{stem}.json").write_text(json.dumps(found, indent=1) + "\n")
        (folder / f"{stem}.csv").write_text(_csv(found))
    pictures = [*plot_heat_maps(results, folder), *plot_curves(results, folder)]
    path = folder / "report.html"
    path.write_text(_page(results, pictures))
    return path


def _csv(found: dict[str, Any]) -> str:
    rows = table_rows(found)
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _page(results: Results, pictures: list[Path]) -> str:
    parts = []
    for name, found in results.items():
        facts = ", ".join(f"{key} {value}" for key, value in found.get("facts", {}).items())
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in sentences(found))
        parts.append(f"<h2>{html.escape(name)}</h2><p class=facts>{html.escape(facts)}</p><ul>{lines}</ul>")
    parts.append("<h2>Effective depth</h2>" + _effective(results) + _MEANING)
    figures = "".join(figure(path) for path in pictures)
    parts.append(f"<h2>Figures</h2><div class=grid>{figures}</div>")
    for name, found in results.items():
        parts.append(f"<h2>Blocks of {html.escape(name)}</h2>{_table(table_rows(found))}")
    return page("Depth report: " + ", ".join(results), "".join(parts))


def _effective(results: Results) -> str:
    counts = {name: effective_depth(found) for name, found in results.items()}
    keys = list(dict.fromkeys(key for held in counts.values() for key in held))
    return _table([{"": key, **{name: held.get(key) for name, held in counts.items()}} for key in keys])


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return table(names, [[_cell(row.get(name)) for name in names] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
