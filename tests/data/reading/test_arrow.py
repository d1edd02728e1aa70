"""Parquet files, and datasets that Hugging Face saved to disk."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_cod.data.megatron_api import IndexedDataset
from megatron_cod.data.preprocessing.estimate import estimate
from megatron_cod.data.preprocessing.job import PreprocessJob
from megatron_cod.data.preprocessing.run import PreprocessResult, preprocess
from megatron_cod.data.reading import arrow, parts
from megatron_cod.data.reading.inputs import find_inputs
from megatron_cod.data.tokenizers.choice import TokenizerChoice

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
BYTES = TokenizerChoice("ByteLevelTokenizer")


def run(source: Path, prefix: Path, **options: Any) -> PreprocessResult:
    return preprocess(PreprocessJob([str(source)], str(prefix), BYTES, **options))


def texts_of(prefix: Path) -> list[str]:
    return [bytes(ids.astype(np.uint8)).decode() for ids in IndexedDataset(str(prefix))]


def parquet(path: Path, texts: list[str | None], **options: Any) -> Path:
    table = pa.table({"id": list(range(len(texts))), "text": texts})
    pq.write_table(table, path, **options)
    return path


def saved_dataset(path: Path, texts: list[str]) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": texts, "url": texts}).save_to_disk(str(path), num_shards=3)
    return path


def arrow_file(path: Path, texts: list[str]) -> Path:
    """The kind of Arrow file with a table of contents, as pandas and pyarrow write it."""
    table = pa.table({"text": texts})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=30)
    return path


Make = Callable[[Path, list[str]], Path]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("d.parquet", lambda path, texts: parquet(path, texts, row_group_size=50)),
        ("d.arrow", arrow_file),
        ("folder", saved_dataset),
    ],
)
def test_the_tokens_are_those_of_the_same_lines(
    documents: list[str], jsonl: Callable[..., Path], tmp_path: Path, name: str, make: Make, workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(parts, "PART_BYTES", 60_000)
    monkeypatch.setattr(arrow, "_GROUP_BYTES", 20_000)
    source = make(tmp_path / name, [*documents, " ", "caf\u00e9"])
    assert len(parts.divide(find_inputs([str(source)]), "line")) > 2
    result = run(source, tmp_path / "d", workers=workers)
    assert texts_of(tmp_path / "d_text_document") == [*documents, "caf\u00e9"]
    assert result.empty == {"text": 1}


@pytest.mark.parametrize(("name", "make"), [("d.parquet", parquet), ("d.arrow", arrow_file)])
@pytest.mark.parametrize("part_bytes", [1 << 25, 5_000])
def test_a_dry_run_knows_how_much_of_a_table_it_read(
    tmp_path: Path, name: str, make: Make, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4,000 equal rows, in one part and in several, as many as asked for."""
    monkeypatch.setattr(parts, "PART_BYTES", part_bytes)
    monkeypatch.setattr(arrow, "_MOST_ROWS", 250)
    make(tmp_path / name, ["word"] * 4000)
    found = estimate(PreprocessJob([str(tmp_path / name)], str(tmp_path / "d"), BYTES), documents=1000)
    assert 1000 <= found.documents <= 1300 and found.share == pytest.approx(found.documents / 4000, rel=0.01)
    assert found.total_tokens == pytest.approx(16_000, rel=0.01)
    whole = estimate(PreprocessJob([str(tmp_path / name)], str(tmp_path / "d"), BYTES), documents=4000)
    assert (whole.documents, whole.share, whole.total_tokens) == (4000, 1.0, 16_000)


@pytest.mark.parametrize("make", [parquet, arrow_file])
@pytest.mark.parametrize("name", ["rows.data", "rows.jsonl"])
def test_a_table_is_known_by_its_content_whatever_its_name(tmp_path: Path, make: Any, name: str) -> None:
    table = make(tmp_path / "table", ["word"] * 4)
    path = table.rename(tmp_path / name)
    for input_format in ("auto", "text"):
        assert find_inputs([str(path)], input_format)[0].has_rows


def test_the_share_of_a_table_that_was_read_counts_from_where_its_part_begins(tmp_path: Path) -> None:
    """Also where a reading goes on in the middle, as after a kill."""
    [source] = find_inputs([str(parquet(tmp_path / "d.parquet", ["word"] * 4000))])
    piece = parts.Slice(0, 1000, 4000, 3000)
    for resume in (None, 1000, 2500):
        batches = list(parts.read_slice(source, piece, ["text"], "line", resume))
        assert [batch.position for batch in batches] == [(batch.after or 0) - 1000 for batch in batches]
        assert batches[-1].position == 3000


def test_other_kinds_of_strings(documents: list[str], tmp_path: Path) -> None:
    for number, kind in enumerate([pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]):
        table = pa.table({"text": pa.array(documents[:20], pa.string()).cast(kind)})
        path = tmp_path / f"{number}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        run(path, tmp_path / f"d{number}")
        assert texts_of(tmp_path / f"d{number}_text_document") == documents[:20]


def test_names_bad_rows(tmp_path: Path) -> None:
    texts = pa.array([b"one", b"\xff", None, b"four"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(texts), texts.buffers())
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"text": text}), path)
    with pytest.raises(ValueError, match=r"d\.parquet, row 2: not UTF-8: byte 0xff at offset 0 \(--skip-bad-lines"):
        run(path, tmp_path / "d")
    result = run(path, tmp_path / "d", skip_bad_lines=True)
    assert texts_of(tmp_path / "d_text_document") == ["one", "four"]
    assert result.bad[1].endswith("d.parquet, row 3: column 'text' holds nothing (null)")


def test_rejects_unusable_tables(tmp_path: Path) -> None:
    path = parquet(tmp_path / "d.parquet", ["a"])
    for keys, says in (
        (["body"], "no column 'body' (columns here: id, text); choose with --json-keys"),
        (
            ["id"],
            "column 'id' holds int64, not strings",
        ),
    ):
        with pytest.raises(ValueError) as caught:
            run(path, tmp_path / "d", json_keys=keys)
        assert f"{path}: {says}" in str(caught.value)
    damaged = tmp_path / "e.parquet"
    damaged.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"e\.parquet: cannot be read as parquet"):
        run(damaged, tmp_path / "d")
    (tmp_path / "f.arrow").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"f\.arrow: cannot be read as arrow"):
        run(tmp_path / "f.arrow", tmp_path / "d")


@pytest.mark.parametrize("kind", ["current", "legacy", "saved"])
def test_a_stream_cut_between_two_batches_is_an_error(tmp_path: Path, kind: str) -> None:
    """Where it is cut, there are bytes that look like an end mark: the last 32 rows are true."""
    path, table = tmp_path / "d.arrow", pa.table({"text": ["word"] * 96, "good": [True] * 96})
    if kind == "saved":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"))
        path = next((tmp_path / "saved").glob("*.arrow"))
    else:
        options = pa.ipc.IpcWriteOptions(use_legacy_format=kind == "legacy")
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=32)
    run(path, tmp_path / "whole")
    assert len(texts_of(tmp_path / "whole_text_document")) == 96
    with pa.memory_map(str(path)) as mapped:
        batches = pa.ipc.open_stream(mapped)
        ends = [mapped.tell(), *(mapped.tell() for _ in batches)]
    whole = path.read_bytes()
    for end in ends:
        path.write_bytes(whole[:end])
        assert kind == "saved" or end == ends[0] or whole[:end].endswith(b"\xff\xff\xff\xff\0\0\0\0")
        with pytest.raises(ValueError, match=rf"{path}: cut Arrow stream \(no end mark behind its \d+ rows\)"):
            run(path, tmp_path / "cut")


def test_names_missing_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "d.parquet", ["a"])
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "pyarrow":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"reading \.parquet needs the package pyarrow \(pip install pyarrow\)"):
        run(path, tmp_path / "d")


def test_folders_that_are_no_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    with pytest.raises(ValueError, match="is a folder; name its files"):
        find_inputs([str(folder)])
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))
    with pytest.raises(ValueError, match=r"not a whole saved dataset: data-0\.arrow is missing"):
        find_inputs([str(folder)])
    (folder / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="not a usable saved dataset"):
        find_inputs([str(folder)])
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(ValueError, match=r"several splits; name one: .*saved/train or .*saved/test"):
        find_inputs([str(folder)])
