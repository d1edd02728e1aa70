"""A directory that appears at once, and what a killed conversion leaves in it."""

import pytest

from megatron_cod.errors import UserError
from megatron_cod.huggingface.atomic_directory import PartialDirectory


def test_finished_directory_has_no_records(tmp_path):
    """Also not the half of one that a kill left."""
    part = PartialDirectory(tmp_path / "out", {"job": 1})
    (part.folder / "x").write_text("1")
    part.mark("x", "note")
    (part.folder / "conversion.json.part").write_text("half")
    part.finish()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"] and not part.folder.exists()


def test_same_job_keeps_finished_files(tmp_path):
    part = PartialDirectory(tmp_path / "out", {"job": 1})
    (part.folder / "x").write_text("1")
    part.mark("x", "note")
    again = PartialDirectory(tmp_path / "out", {"job": 1})
    assert again.done("x") == "note" and again.done("y") is None
    assert PartialDirectory(tmp_path / "out", {"job": 2}).done("x") is None


def test_rejects_existing_output(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    with pytest.raises(UserError, match="--output"):
        PartialDirectory(tmp_path / "out", {})
