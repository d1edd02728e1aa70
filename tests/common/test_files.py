"""Files and directories that appear at once."""

from pathlib import Path

import pytest

from megatron_cod.common.files import check_writable, making_directory, replacing, write_whole
from megatron_cod.errors import UserError


def test_replaces_content_only_when_all_is_written(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_keeps_old_content_when_writing_fails(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), replacing(path) as part:
        part.write_text("half")
        raise OSError("full")
    assert path.read_text() == "old" and [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_writes_text_as_utf8_and_bytes_as_given(tmp_path: Path):
    write_whole(tmp_path / "a", "\u00e9", sync=True)
    write_whole(tmp_path / "b", b"\xff", mark=7)
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9" and (tmp_path / "b").read_bytes() == b"\xff"


def test_directory_appears_when_it_is_filled(tmp_path: Path):
    with making_directory(tmp_path / "d") as part:
        (part / "x").write_text("1")
        assert not (tmp_path / "d").exists()
    assert [one.name for one in tmp_path.iterdir()] == ["d"] and (tmp_path / "d" / "x").read_text() == "1"


def test_keeps_directory_that_another_process_has_made(tmp_path: Path):
    with making_directory(tmp_path / "d") as part:
        (part / "x").write_text("second")
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "x").write_text("first")
    assert [one.name for one in tmp_path.iterdir()] == ["d"] and (tmp_path / "d" / "x").read_text() == "first"


def test_removes_directory_that_could_not_be_filled(tmp_path: Path):
    with pytest.raises(ValueError), making_directory(tmp_path / "d"):
        raise ValueError
    assert not list(tmp_path.iterdir())


def test_makes_missing_folder_and_leaves_no_file(tmp_path: Path):
    check_writable(tmp_path / "a" / "b", "--save x")
    assert not list((tmp_path / "a" / "b").iterdir())


def test_rejects_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", Path("/proc/x")):
        with pytest.raises(UserError, match="--save x cannot be written: "):
            check_writable(folder, "--save x")


@pytest.mark.parametrize("keep", [True, False])
def test_a_folder_that_is_tried_stays_only_where_a_run_follows(tmp_path, keep):
    (tmp_path / "there").mkdir()
    check_writable(tmp_path / "there", "--save", keep=keep)
    check_writable(tmp_path / "new" / "run", "--save", keep=keep)
    assert (tmp_path / "there").exists() and not list((tmp_path / "there").iterdir())
    assert (tmp_path / "new").exists() is (tmp_path / "new" / "run").exists() is keep
