from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from megatron_cod.data.datasets import check as check_module
from megatron_cod.data.datasets.check import check_prefix
from megatron_cod.data.megatron_api import IndexedDatasetBuilder
from megatron_cod.data.preprocessing.job import PreprocessJob
from megatron_cod.data.preprocessing.run import preprocess
from megatron_cod.data.sample_corpus import sample_corpus_path
from megatron_cod.data.tokenizers.choice import TokenizerChoice


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("good") / "sotu"
    choice = TokenizerChoice("ByteLevelTokenizer")
    preprocess(PreprocessJob([str(sample_corpus_path())], str(prefix), choice, append_eod=True))
    return prefix.with_name("sotu_text_document")


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / good.name


def build(prefix: Path, documents: list[list[int]], dtype: type = np.uint16) -> Path:
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for ids in documents:
        builder.add_document(np.array(ids), [len(ids)])
    builder.finalize(f"{prefix}.idx")
    return prefix


def complaint(prefix: Path | str, vocab_size: int | None = None) -> str:
    with pytest.raises(ValueError) as caught:
        check_prefix(prefix, vocab_size=vocab_size)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_good_data_passes_and_is_described(good: Path) -> None:
    summary = check_prefix(good, vocab_size=257)
    assert (summary.documents, summary.sequences, summary.dtype) == (24, 24, "uint16")
    assert summary.tokens == summary.scanned == 859_378 + 24
    assert summary.max_token == 256
    assert summary.record is not None
    assert summary.record.training_arguments == ["--tokenizer-type", "NullTokenizer", "--vocab-size", "257"]


def test_data_of_another_tool_passes(tmp_path: Path) -> None:
    for dtype in (np.uint16, np.int32):
        summary = check_prefix(build(tmp_path / "x", [[1, 2], [3]], dtype), vocab_size=4)
        assert (summary.documents, summary.tokens, summary.max_token) == (2, 3, 3)
        assert summary.record is None


def test_missing_dataset_names_both_files_and_similar_ones(good: Path, tmp_path: Path) -> None:
    message = complaint(good.with_name("sotu"))
    assert "sotu.idx" in message and "sotu.bin" in message
    assert f"did you mean {good}?" in message
    assert f"did you mean {good}?" in complaint(good.with_name("sotu_test_document"))
    assert f"without the file's ending: {good}" in complaint(f"{good}.bin")
    assert "holds no dataset" in complaint(tmp_path / "x")
    assert "folder" in complaint(tmp_path / "none" / "x")


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_names_missing_file(copy: Path, suffix: str) -> None:
    Path(f"{copy}{suffix}").unlink()
    assert f"{copy}{suffix} is missing" in complaint(copy)


def change(path: Path, place: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)


@pytest.mark.parametrize(
    ("place", "content", "says"),
    [
        (0, b"GARBAGE", "is not a Megatron index"),
        (9, struct.pack("<Q", 2), "has index version 2"),
        (17, b"\x06", "has dtype code 6"),
        (18, struct.pack("<Q", 1 << 60), "cut off or damaged"),
        (26, struct.pack("<Q", 7), "cut off or damaged"),
        (34, struct.pack("<i", -5), "contradict each other"),
        (34 + 24 * 4 + 8, struct.pack("<q", 3), "contradict each other"),
        (34 + 24 * 12 + 8, struct.pack("<q", 99), "contradict each other"),
    ],
)
def test_rejects_damaged_index(copy: Path, place: int, content: bytes, says: str) -> None:
    change(Path(f"{copy}.idx"), place, content)
    assert says in complaint(copy)


@pytest.mark.parametrize(("size", "says"), [(0, "is not a Megatron index"), (20, "cut off"), (400, "cut off")])
def test_rejects_truncated_index(copy: Path, size: int, says: str) -> None:
    with Path(f"{copy}.idx").open("r+b") as file:
        file.truncate(size)
    assert says in complaint(copy)


@pytest.mark.parametrize("change_by", [-2, -1, 2])
def test_data_of_another_size(copy: Path, change_by: int) -> None:
    path = Path(f"{copy}.bin")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + change_by)
    assert "859402 tokens of 2 bytes = 1718804" in complaint(copy)


def test_rejects_empty_dataset(tmp_path: Path) -> None:
    assert "is empty (0 tokens)" in complaint(build(tmp_path / "x", []))
    assert "is empty (0 tokens)" in complaint(build(tmp_path / "y", [[], []]))


def test_ids_above_the_vocabulary(good: Path, tmp_path: Path) -> None:
    message = complaint(good, vocab_size=256)
    assert "vocabulary of 257 ids, but the model has 256" in message
    assert "--tokenizer-type NullTokenizer --vocab-size 257" in message
    prefix = build(tmp_path / "x", [[1, 2], [3, 900, 4]])
    assert "token id 900 at position 3, but the model has ids 0 to 899" in complaint(prefix, vocab_size=900)
    assert check_prefix(prefix, vocab_size=901).max_token == 900


def test_rejects_negative_ids(tmp_path: Path) -> None:
    assert "token id -1 at position 1" in complaint(build(tmp_path / "x", [[1, -1]], np.int32))


def test_large_data_is_sampled_from_end_to_end(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "SCAN_TOKENS", 1 << 14)
    monkeypatch.setattr(check_module, "_WINDOW", 1 << 10)
    assert check_prefix(copy).scanned == 1 << 14
    change(Path(f"{copy}.bin"), 2 * 859_401, struct.pack("<H", 5000))
    assert "token id 5000 at position 859401" in complaint(copy, vocab_size=512)


def test_rejects_broken_manifest(copy: Path) -> None:
    path = Path(f"{copy}.json")
    for content in ("{", "[]", '{"format": 9}', '{"format": 1}'):
        path.write_text(content)
        assert f"{path} is not a dataset record" in complaint(copy)


@pytest.mark.parametrize(("name", "value"), [("documents", 25), ("tokens", 859_403), ("dtype", "int32")])
def test_a_record_of_another_dataset(copy: Path, name: str, value: object) -> None:
    path = Path(f"{copy}.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, name: value}))
    message = complaint(copy)
    assert f"{path} does not belong to {copy}.idx: it records {name} {value}, the index has {record[name]}" in message
