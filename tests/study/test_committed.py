"""The committed results of studies: each table is made from its raw records by one command."""

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
