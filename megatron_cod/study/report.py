"""The report of a study: one HTML page with everything in it, Markdown, CSV, raw records and PNGs."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_cod.analysis import page
from megatron_cod.errors import UserError, one_line
from megatron_cod.study import figures
from megatron_cod.study.diagnosis import REMOVAL, costs_of, removal_costs
from megatron_cod.study.directory import FACTS, StudyDirectory
from megatron_cod.study.jobs import Job
from megatron_cod.study.scheduler import Results, best_of, finals_of, outlook, runnable
from megatron_cod.study.shapes import Shape
from megatron_cod.study.study_file import Study
from megatron_cod.study.tables import Table, all_tables, raw_lines, read_raw, runs_csv

Costs = Mapping[tuple[Shape, str], list[float]]

RAW = "raw.jsonl"

_MEANING = (
    "Losses are nats per token on the whole validation text, with fp32 logits, after the last step. Differences are paired "
    "by seed, in brackets the 95% interval of the mean by Student's t. Sensitivity to lr is the mean excess of the loss "
    "over the arm's best within the grid that all arms share (Wortsman et al., arXiv 2309.14322); a run that diverged "
    "counts with the loss at initialization."
)


def write_report(directory: StudyDirectory) -> list[Path]:
    """From the runs of a study's directory, into its folder ``report``."""
    study, results = directory.study, directory.results()
    failures = directory.failures(runnable(study, results))
    facts = directory.facts() | {"code": directory.versions()}
    return write_files(study, results, failures, removal_costs(directory), directory.root / "report", facts)


def report_of_raw(study: Study, raw: Path, folder: Path) -> list[Path]:
    """From the records in another report's folder. UserError where there are none."""
    try:
        results = read_raw(study, (raw / RAW).read_text().splitlines())
        costs = costs_of(study, json.loads((raw / REMOVAL).read_text()) if (raw / REMOVAL).exists() else [])
        facts = dict(json.loads((raw / FACTS).read_text())) if (raw / FACTS).exists() else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{raw} holds no records of this study: {one_line(error)}") from None
    return write_files(study, results, {}, costs, folder, facts)


def write_files(
    study: Study,
    results: Results,
    failures: Mapping[Job, str],
    costs: Costs,
    folder: Path,
    facts: Mapping[str, Any],
) -> list[Path]:
    """All files of a report; their paths.

    facts: what the study is (``StudyDirectory.facts``), which an import of the records compares; none
    for a report whose ``study.json`` is not at hand.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables, lines = all_tables(study, results, failures), _facts(study, results, facts.get("code", ()))
    texts = {
        "results.md": _markdown(lines, tables),
        "runs.csv": runs_csv(study, results),
        RAW: raw_lines(study, results),
    }
    if costs:
        listed = [{"shape": shape.name, "arm": arm, "rise": rise} for (shape, arm), rise in costs.items()]
        texts[REMOVAL] = json.dumps(listed) + "\n"
    if facts:
        texts[FACTS] = json.dumps(facts, indent=1) + "\n"
    for name, text in texts.items():
        (folder / name).write_text(text)
    pictures = _pictures(study, results, costs, folder) if results else {}
    (folder / "report.html").write_text(_page(lines, tables, pictures))
    return [*(folder / name for name in texts), *pictures, folder / "report.html"]


def _facts(study: Study, results: Results, made_by: Sequence[str]) -> list[str]:
    left = outlook(study, results).total
    finished = f"{len(results)} runs" + (f"; not finished: at least {left} runs are left" if left else "")
    rates = ", ".join(f"{rate:g}" for rate in study.grid.rates)
    lines = [study.question, study.rule.sentence(), finished]
    for shape in study.shapes:
        tokens = study.steps_of(shape) * study.tokens_per_step
        lines.append(
            f"{shape.name}: MLP {shape.ffn}, {shape.heads} heads, {shape.non_embedding:,} non-embedding parameters, std "
            f"{study.std_of(shape):g}, {study.steps_of(shape):,} steps, {tokens:,} tokens, "
            f"{tokens / shape.non_embedding:.2f} per parameter"
        )
    lines.append(
        f"grid of peak rates: {rates}; tuning seeds {', '.join(map(str, study.tuning_seeds))}, final seeds "
        f"{', '.join(map(str, study.seeds))}; text: {study.text}"
    )
    if made_by:
        lines.append(f"runs made by megatron_cod {', '.join(made_by)}")
    return [*lines, _MEANING]


def _markdown(facts: list[str], tables: list[Table]) -> str:
    question, *facts = facts
    head = f"# {question}\n\n" + "".join(f"- {line}\n" for line in facts)
    return "\n".join([head, *(table.markdown() for table in tables)])


def _pictures(study: Study, results: Results, costs: Costs, folder: Path) -> dict[Path, str]:
    """Path -> caption, of the figures for which there is something to draw."""
    for old in folder.glob("*.png"):
        old.unlink()
    found = {
        figures.loss_against_rate(study, results, folder / "loss_against_rate.png"): (
            "Validation loss against peak learning rate. Lines: tuning runs; white markers with bars: final seeds at the "
            "tuned rate, lowest to highest; crosses at the top: diverged."
        )
    }
    tuned = [(shape, arm) for shape in study.shapes for arm in study.arms if best_of(study, results, shape, arm)]
    if len(study.shapes) > 1 and any(finals_of(study, results, *one) for one in tuned):
        path = figures.loss_against_depth(study, results, folder / "loss_against_depth.png")
        found[path] = "Validation loss against depth, each arm at its tuned rate."
    if tuned:
        path = figures.variance_by_layer(study, results, folder / "variance_by_layer.png")
        found[path] = "Variance of the residual stream after each layer, at the tuned rate."
    if costs:
        path = figures.removal_by_layer(study, costs, folder / "removal_by_layer.png")
        found[path] = "Rise of the validation loss when a layer is removed, first final seed at the tuned rate."
    return found


def _page(facts: list[str], tables: list[Table], pictures: Mapping[Path, str]) -> str:
    question, *facts = facts
    parts = ["<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in facts) + "</ul>"]
    shown = [page.figure(path, caption) for path, caption in pictures.items()]
    parts += shown[:1]
    for table in tables:
        rows = [[cell.replace("**", "") for cell in row] for row in table.rows]
        parts.append(f"<h2>{html.escape(table.title)}</h2>{page.table(table.head, rows) if rows else ''}")
        parts.append(f"<p class=facts>{html.escape(table.note.replace('In bold: the tuned rate.', ''))}</p>")
    parts += ["<h2>Figures</h2>", *shown[1:]]
    return page.page(question, "".join(parts))
