"""The committed results of studies: each table is made from its raw records by one command."""

import json
import re
from statistics import fmean

import pytest

from tests.conftest import ROOT
from tests.programs import run_program

COMMITTED = [path for path in (ROOT / "docs" / "results").iterdir() if (path / "raw.jsonl").is_file()]


def test_there_are_committed_results():
    assert COMMITTED


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda path: path.name)
def test_table_is_reproduced_from_its_raw_records(folder, tmp_path):
    study = f"recipes/studies/{folder.name}.yaml"
    done = run_program("depth_study.py", study, "--report", "--raw", folder, "--output", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    for name in ("results.md", "runs.csv", "raw.jsonl"):
        assert (tmp_path / "again" / name).read_text() == (folder / name).read_text(), name


def _records(name: str) -> list[dict]:
    return [json.loads(line) for line in (ROOT / "docs" / "results" / name / "raw.jsonl").read_text().splitlines()]


def _best_rates(name: str) -> dict[tuple[str, str], float]:
    """(shape, arm) -> rate of the lowest loss of the search, seed 1."""
    search = [one for one in _records(name) if one["seed"] == 1]
    lowest = {}
    for one in sorted(search, key=lambda one: -one["loss"]):
        lowest[one["shape"], one["arm"]] = one["rate"]
    return lowest


def test_the_table_of_expectations_is_that_of_the_records():
    text = (ROOT / "docs" / "expectations.md").read_text()
    head, *rows = re.findall(r"^\| (?:8 layers|32 layers|\|).*$", text, re.MULTILINE)
    arms = re.findall(r"`([^`]+)`", head)
    cells = {row.split("|")[1].strip(): [float(cell) for cell in row.split("|")[2:-1]] for row in rows}
    assert len(arms) == 4 and len(cells) == 6
    best, records = _best_rates("cpu_1m"), _records("cpu_1m")
    for shape, name in (("8 layers x 96", "8 layers"), ("32 layers x 48", "32 layers")):
        assert cells[f"{name}: best rate"] == [best[shape, arm] for arm in arms]
        for arm, shown in zip(arms, cells[f"{name}: validation loss"], strict=True):
            final = [one["loss"] for one in records if (one["shape"], one["arm"]) == (shape, arm) and one["seed"] > 1]
            assert len(final) == 3 and shown == pytest.approx(fmean(final), abs=5e-4)


def test_complete_p_keeps_its_best_rate_over_depth():
    """docs/schemes.md says so of the study complete_p_depth."""
    best = {shape: rate for (shape, arm), rate in _best_rates("complete_p_depth").items() if "complete_p" in arm}
    assert best == {"4 layers x 64": 8e-3, "32 layers x 64": 8e-3}


def test_the_costs_of_removal_in_studies_md_are_those_of_the_records():
    costs = json.loads((ROOT / "docs" / "results" / "complete_p_depth" / "removal.json").read_text())
    deep = {one["arm"].split("+")[0]: one["rise"] for one in costs if len(one["rise"]) == 32}
    shown = {arm: (round(fmean(rise[-8:]), 3), sum(one < 1e-3 for one in rise)) for arm, rise in deep.items()}
    text = " ".join((ROOT / "docs" / "studies.md").read_text().split())
    said = re.search(
        r"loss by (\S+) nats under `complete_p` and by (\S+) under Pre-LN on average; "
        r"(\d+) of the 32 layers cost less than 0.001 nats under `complete_p`, (\d+) under Pre-LN",
        text,
    )
    assert said is not None
    assert shown == {"complete_p": (float(said[1]), int(said[3])), "pre_ln": (float(said[2]), int(said[4]))}
