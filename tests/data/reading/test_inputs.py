from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest
import zstandard

from megatron_cod.data.reading.compression import open_input
from megatron_cod.data.reading.inputs import find_inputs
from megatron_cod.data.reading.parts import read_batches

CONTENT = b"".join(b"line %d of a file\n" % i for i in range(200_000))


def zstd(content: bytes) -> bytes:
    """Two frames, as `cat a.zst b.zst` makes."""
    half = len(content) // 2
    compressor = zstandard.ZstdCompressor()
    return compressor.compress(content[:half]) + compressor.compress(content[half:])


def xz(content: bytes) -> bytes:
    """Of the quickest setting."""
    return lzma.compress(content, preset=0)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd, xz, bz2.compress])
@pytest.mark.parametrize("name", ["in.txt", "in.txt.gz"])
def test_content_decides_about_compression(tmp_path: Path, compress: object, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(compress(CONTENT))  # type: ignore[operator]
    with open_input(path) as stream:
        assert b"".join(stream.content) == CONTENT
        assert stream.position() == path.stat().st_size


@pytest.mark.parametrize("compress", [gzip.compress, zstd, xz, bz2.compress])
@pytest.mark.parametrize("keep", [0.4, 0.9])
def test_a_cut_compressed_file_is_an_error(tmp_path: Path, compress: object, keep: float) -> None:
    whole = compress(CONTENT)  # type: ignore[operator]
    path = tmp_path / "in.txt"
    path.write_bytes(whole[: int(len(whole) * keep)])
    with (
        pytest.raises(ValueError, match=r"in\.txt: damaged or cut compressed file"),
        open_input(path) as stream,
    ):
        b"".join(stream.content)


@pytest.mark.parametrize("name", ["in.jsonl.gz", "in.jsonl.zst", "in.jsonl.xz", "in.jsonl.bz2"])
@pytest.mark.parametrize("keep", [0, 1])
def test_a_compressed_file_of_which_nothing_is_left_is_an_error(tmp_path: Path, name: str, keep: int) -> None:
    path = tmp_path / name
    path.write_bytes({".gz": gzip.compress, ".zst": zstd, ".xz": xz, ".bz2": bz2.compress}[path.suffix](CONTENT)[:keep])
    with pytest.raises(ValueError, match=rf"{path}: damaged or cut compressed file \({keep} bytes\)"):
        list(read_batches(find_inputs([str(path)]), "line"))
    plain = tmp_path / "in.jsonl"
    plain.write_bytes(b"")
    assert list(read_batches(find_inputs([str(plain)]), "line")) == []


@pytest.mark.parametrize("compress", [gzip.compress, zstd, xz, bz2.compress])
def test_a_damaged_compressed_file_is_an_error(tmp_path: Path, compress: object) -> None:
    whole = bytearray(compress(CONTENT))  # type: ignore[operator]
    for place in range(len(whole) // 2, len(whole) // 2 + 50):
        whole[place] ^= 0xFF
    path = tmp_path / "in.txt"
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="damaged or cut compressed file"), open_input(path) as stream:
        b"".join(stream.content)


def tar(compression: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}") as archive:
        member = tarfile.TarInfo("a.jsonl")
        member.size = 1000
        archive.addfile(member, io.BytesIO(b"x" * 1000))
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jsonl", "{}")
    return file.getvalue()


ARCHIVES = {
    "a tar archive": tar(""),
    "a tar archive, ": tar("gz"),
    "a tar archive, which is": tar("xz"),
    "a zip archive": zipped(),
    "a 7z archive": b"7z\xbc\xaf\x27\x1c\0\4",
    "compressed with lz4": b"\x04\x22\x4d\x18" + bytes(20),
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_archives_are_refused_by_name(tmp_path: Path, what: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(ARCHIVES[what])
    with pytest.raises(ValueError, match=rf"in\.jsonl is {what}.*unpack it"):
        list(read_batches(find_inputs([str(path)]), "line"))


def test_text_that_begins_like_bzip2_is_text(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(b"BZh9 is how such a file begins")
    with open_input(path) as stream:
        assert stream.content.read() == b"BZh9 is how such a file begins"


def test_paths_keep_their_order_and_globs_are_sorted_and_each_file_counts_once(tmp_path: Path) -> None:
    for name in ("c.jsonl", "a.jsonl", "b.txt.gz"):
        (tmp_path / name).write_text("x")
    found = find_inputs([str(tmp_path / "c.jsonl"), str(tmp_path / "*")])
    assert [source.path.name for source in found] == ["c.jsonl", "a.jsonl", "b.txt.gz"]
    assert [source.format for source in found] == ["jsonl", "jsonl", "text"]


def test_a_file_with_several_names_counts_once_under_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.jsonl").write_text("x")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "x" / "a.jsonl")
    monkeypatch.chdir(tmp_path / "x")
    names = ["a.jsonl", str(tmp_path / "x" / "a.jsonl"), "../x/a.jsonl", "../*.jsonl", "a.jsonl"]
    said: list[str] = []
    [found] = find_inputs(names, log=said.append)
    assert str(found.path) == "a.jsonl"
    left_out = f"{tmp_path}/x/a.jsonl (a.jsonl again), ../x/a.jsonl (a.jsonl again), ../b.jsonl (a.jsonl again)"
    assert said == [f"each input is read once; skipped: {left_out} and 1 more"]
    assert len(find_inputs(names[:2])) == 1
    ended = capsys.readouterr()
    assert (ended.out, ended.err) == ("", f"each input is read once; skipped: {names[1]} (a.jsonl again)\n")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("none.jsonl", "does not exist"),
        ("*.zst", "matches no file"),
        ("", "is a folder; name its files"),
        ("data", "the format is not known from the name; give --input-format"),
    ],
)
def test_inputs_that_cannot_be_found(tmp_path: Path, pattern: str, says: str) -> None:
    (tmp_path / "data").write_text("x")
    with pytest.raises(ValueError, match=says):
        find_inputs([str(tmp_path / pattern)])


def test_a_glob_character_in_a_real_name_is_no_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("x")
    assert find_inputs([str(tmp_path / "a[1].txt")])[0].path.name == "a[1].txt"
