"""The committed depth reports: page and tables are made from the committed measurements."""

import json
import re

import pytest

from megatron_cod.analysis.depth.report import write_report
from tests.conftest import ROOT

COMMITTED = sorted({path.parent for path in (ROOT / "docs" / "results").glob("*/depth*.json")})


def without_images(page: str) -> str:
    """Pixels depend on the version of matplotlib."""
    return re.sub(r"base64,[^']*", "", page)


def test_there_are_committed_reports():
    assert len(COMMITTED) >= 2


@pytest.mark.slow_except("smollm2")
@pytest.mark.parametrize("folder", COMMITTED, ids=lambda path: path.name)
def test_report_is_reproduced_from_its_measurements(folder, tmp_path):
    results = {}
    for path in sorted(folder.glob("depth*.json")):
        found = json.loads(path.read_text())
        results[found["facts"]["model"] if path.stem == "depth" else path.stem.removeprefix("depth_")] = found
    write_report(results, tmp_path)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == sorted(path.name for path in folder.iterdir() if path.name != "README.md")
    for name in made:
        if not name.endswith(".png"):
            assert without_images((tmp_path / name).read_text()) == without_images((folder / name).read_text()), name
