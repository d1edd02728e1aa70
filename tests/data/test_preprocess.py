from __future__ import annotations

import gzip
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from megatron_cod.data import documents as documents_module
from megatron_cod.data import preprocess as preprocess_module
from megatron_cod.data.check import check_prefix
from megatron_cod.data.estimate import estimate
from megatron_cod.data.job import PreprocessJob
from megatron_cod.data.megatron_api import IndexedDataset
from megatron_cod.data.preprocess import PreprocessResult, preprocess
from megatron_cod.data.record import read_record
from megatron_cod.data.sample_corpus import sample_corpus_path
from megatron_cod.data.tokenizers import TokenizerChoice

Jsonl = Callable[..., Path]
BYTES = TokenizerChoice("ByteLevelTokenizer")


def run(source: Path | str, prefix: Path, **options: Any) -> PreprocessResult:
    options.setdefault("tokenizer", BYTES)
    return preprocess(PreprocessJob([str(source)], str(prefix), **options))


def texts_of(prefix: Path | str) -> list[str]:
    """The documents of a byte-level dataset, without their eod."""
    data = IndexedDataset(str(prefix))
    return [bytes(ids[ids < 256].astype(np.uint8)).decode() for ids in data]


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_megatron_reads_back_what_its_tokenizer_gave(
    choice: TokenizerChoice, documents: list[str], jsonl: Jsonl, tmp_path: Path
) -> None:
    run(jsonl(documents[:20]), tmp_path / "d", tokenizer=choice, append_eod=True)
    data = IndexedDataset(str(tmp_path / "d_text_document"))
    tokenizer = choice.build()
    assert len(data) == 20
    assert data.document_indices.tolist() == list(range(21))
    for text, ids in zip(documents[:20], data, strict=True):
        is_bytes = choice.type == "ByteLevelTokenizer"
        expected = list(text.encode()) if is_bytes else tokenizer.tokenize(text)
        assert ids.tolist() == [*expected, tokenizer.eod]
    record = read_record(tmp_path / "d_text_document")
    assert record is not None
    assert record.eod_id == tokenizer.eod
    assert record.vocab_size == tokenizer.vocab_size
    assert record.tokens == sum(data.sequence_lengths)
    assert record.text_bytes == sum(len(text.encode()) for text in documents[:20])


def test_without_append_eod_nothing_is_added(jsonl: Jsonl, tmp_path: Path) -> None:
    run(jsonl(["ab"]), tmp_path / "d")
    assert texts_of(tmp_path / "d_text_document") == ["ab"]
    assert check_prefix(tmp_path / "d_text_document").tokens == 2


@pytest.mark.parametrize("workers", [2, 5])
def test_any_number_of_workers_gives_the_same_bytes(
    choice: TokenizerChoice, documents: list[str], jsonl: Jsonl, tmp_path: Path, workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(documents_module, "BATCH_BYTES", 5000)
    lines = [text if number % 7 else " " for number, text in enumerate(documents)]
    source = jsonl(lines)
    with source.open("a") as file:
        file.write("broken\n")
    for name, count in (("one", 1), ("many", workers)):
        run(
            source, tmp_path / name / "d", tokenizer=choice, append_eod=True, workers=count,
            split="8,1,1", max_documents=150, skip_bad_lines=True,
        )  # fmt: skip
    assert content_of(tmp_path / "one") == content_of(tmp_path / "many")


def test_batches_do_not_show_in_the_result(
    documents: list[str], jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = jsonl(documents)
    run(source, tmp_path / "large" / "d")
    monkeypatch.setattr(documents_module, "BATCH_DOCUMENTS", 3)
    run(source, tmp_path / "small" / "d")
    assert content_of(tmp_path / "large") == content_of(tmp_path / "small")


def test_compressed_input_gives_the_same_tokens(documents: list[str], jsonl: Jsonl, tmp_path: Path) -> None:
    plain = jsonl(documents)
    for suffix, compress in ((".gz", gzip.compress), (".zst", zstandard.ZstdCompressor().compress)):
        packed = tmp_path / f"in.jsonl{suffix}"
        packed.write_bytes(compress(plain.read_bytes()))
        run(packed, tmp_path / f"out{suffix}")
    run(plain, tmp_path / "out")
    expected = (tmp_path / "out_text_document.bin").read_bytes()
    for suffix in (".gz", ".zst"):
        assert (tmp_path / f"out{suffix}_text_document.bin").read_bytes() == expected


def test_splits_hold_whole_documents_and_lose_none(speeches: list[str], tmp_path: Path) -> None:
    result = run(sample_corpus_path(), tmp_path / "d", split="80,10,10", append_eod=True)
    parts = {name: texts_of(tmp_path / f"d_{name}_text_document") for name in ("train", "valid", "test")}
    assert sorted(itertools.chain(*parts.values())) == sorted(speeches)
    assert [len(part) for part in parts.values()] == [19, 3, 2]
    assert [record.split for record in result.datasets.values()] == ["train", "valid", "test"]


def test_holdout_by_whole_documents(speeches: list[str], tmp_path: Path) -> None:
    run(sample_corpus_path(), tmp_path / "d", holdout_every=8)
    assert texts_of(tmp_path / "d_valid_text_document") == speeches[7::8]


@pytest.mark.parametrize(
    ("split_on", "expected"),
    [
        ("blank-line", ["one\ntwo", "three"]),
        ("line", ["one", "two", "three"]),
        ("file", ["one\ntwo\n\nthree"]),
    ],
)
def test_plain_text(tmp_path: Path, split_on: str, expected: list[str]) -> None:
    (tmp_path / "in.txt").write_text("one\ntwo\n\nthree\n")
    result = run(tmp_path / "in.txt", tmp_path / "d", split_on=split_on)
    assert texts_of(tmp_path / "d_text_document") == expected
    assert result.empty == (1 if split_on == "line" else 0)


def test_several_inputs_follow_each_other(jsonl: Jsonl, tmp_path: Path) -> None:
    jsonl(["b"], "b.jsonl")
    jsonl(["a"], "a.jsonl")
    (tmp_path / "c.txt").write_text("c")
    preprocess(PreprocessJob([str(tmp_path / "*.jsonl"), str(tmp_path / "c.txt")], str(tmp_path / "d"), BYTES))
    assert texts_of(tmp_path / "d_text_document") == ["a", "b", "c"]


def test_each_json_key_makes_a_dataset_and_a_record_stays_in_one_split(tmp_path: Path) -> None:
    records = [{"title": f"t{i}", "body": f"b{i}" if i != 1 else ""} for i in range(6)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run(tmp_path / "in.jsonl", tmp_path / "d", json_keys=["title", "body"], holdout_every=3)
    assert texts_of(tmp_path / "d_valid_title_document") == ["t2", "t5"]
    assert texts_of(tmp_path / "d_valid_body_document") == ["b2", "b5"]
    assert texts_of(tmp_path / "d_train_title_document") == ["t0", "t1", "t3", "t4"]
    assert texts_of(tmp_path / "d_train_body_document") == ["b0", "b3", "b4"]


def test_max_documents_counts_documents_written(jsonl: Jsonl, tmp_path: Path) -> None:
    result = run(jsonl(["", "a", " \n", "b", "c"]), tmp_path / "d", max_documents=2)
    assert texts_of(tmp_path / "d_text_document") == ["a", "b"]
    assert result.empty == 2


def test_bad_lines_are_an_error_or_counted(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text": "a"}\n{"text": 1}\n\n{"text": "\\ud800"}\n{"text": "b"}\n')
    with pytest.raises(ValueError, match=r"in\.jsonl, line 2: key 'text' holds a int, .*--skip-bad-lines"):
        run(source, tmp_path / "d")
    result = run(source, tmp_path / "d", skip_bad_lines=True)
    assert texts_of(tmp_path / "d_text_document") == ["a", "b"]
    assert (result.empty, result.bad_count) == (1, 2)
    assert "line 4: holds a lone surrogate" in result.bad[1]


def test_a_worker_reports_the_line_too(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{\n')
    with pytest.raises(ValueError, match=r"in\.jsonl, line 2: not JSON"):
        run(tmp_path / "in.jsonl", tmp_path / "out" / "d", workers=2)
    assert content_of(tmp_path / "out") == {}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_run_leaves_nothing(
    documents: list[str], jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type
) -> None:
    monkeypatch.setattr(documents_module, "BATCH_DOCUMENTS", 10)
    seen = []

    def stop_halfway(*_: object) -> None:
        seen.append(sorted(path.name for path in (tmp_path / "out").iterdir()))
        if len(seen) == 3:
            raise error

    monkeypatch.setattr(preprocess_module.Progress, "update", stop_halfway)
    with pytest.raises(error):
        run(jsonl(documents), tmp_path / "out" / "d")
    assert seen[-1] == ["d_text_document.bin.partial"]
    assert content_of(tmp_path / "out") == {}


def test_a_failed_second_run_keeps_the_first(jsonl: Jsonl, tmp_path: Path) -> None:
    run(jsonl(["first"]), tmp_path / "out" / "d")
    before = content_of(tmp_path / "out")
    with pytest.raises(ValueError, match="no documents in 1 input"):
        run(jsonl(["", " "]), tmp_path / "out" / "d", overwrite=True)
    assert content_of(tmp_path / "out") == before


def test_existing_output_is_kept_unless_asked(jsonl: Jsonl, tmp_path: Path) -> None:
    source = jsonl(["first"])
    run(source, tmp_path / "d")
    with pytest.raises(ValueError, match=r"exists already: .*d_text_document\.bin.*--overwrite"):
        run(source, tmp_path / "d")
    run(jsonl(["second"]), tmp_path / "d", overwrite=True)
    assert texts_of(tmp_path / "d_text_document") == ["second"]
    assert check_prefix(tmp_path / "d_text_document").documents == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workers": 0}, "--workers must be 1 or more"),
        ({"max_documents": 0}, "--max-documents must be 1 or more"),
        ({"split_on": "page"}, "--split-on 'page' is unknown"),
        ({"json_keys": ["a", "a"]}, "--json-keys must be different names"),
        ({"split": "1,1", "holdout_every": 2}, "not both"),
        ({"holdout_every": 100}, "1 document(s) are too few: none for"),
    ],
)
def test_bad_options(jsonl: Jsonl, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        run(jsonl(["text"]), tmp_path / "out" / "d", **options)
    assert says in str(caught.value)
    assert not list(tmp_path.glob("out/*"))


def test_json_keys_do_not_go_with_plain_text(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("text")
    with pytest.raises(ValueError, match="one of the inputs is plain text"):
        run(tmp_path / "in.txt", tmp_path / "d", json_keys=["body"])


def test_estimate_is_near_the_truth_and_writes_nothing(
    documents: list[str], jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents_module, "BATCH_DOCUMENTS", 30)
    source = jsonl(documents * 4)
    job = PreprocessJob([str(source)], str(tmp_path / "out" / "d"), BYTES, append_eod=True)
    guess = estimate(job, documents=60)
    assert guess.documents == 60
    assert not (tmp_path / "out").exists()
    actual = next(iter(preprocess(job).datasets.values())).tokens
    assert guess.total_tokens == pytest.approx(actual, rel=0.5)
    assert estimate(job, documents=10_000).total_tokens == actual


def test_workers_end_when_their_parent_is_killed() -> None:
    """The workers hold the output pipe open, so the run below returns only when they are gone."""
    program = """
import os, signal
from pathlib import Path
import numpy as np
from megatron_cod.data.documents import RawBatch
from megatron_cod.data.encode import encode_all
from megatron_cod.data.inputs import InputFile

class Encoder:
    dtype = np.uint16
    def __call__(self, text):
        return np.ones(1, np.uint16)

def batches():
    for number in range(100):
        if number == 50:
            print("killed", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        yield RawBatch(InputFile(Path("x"), 1, "text"), [b"x"], [1], 1)

list(encode_all(batches(), ["text"], Encoder(), False, 3))
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=30)
    assert (done.stdout, done.returncode) == (b"killed\n", -9)
