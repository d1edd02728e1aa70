from __future__ import annotations

import gzip
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from megatron_cod.data.datasets.check import check_prefix
from megatron_cod.data.datasets.manifest import read_record
from megatron_cod.data.megatron_api import IndexedDataset
from megatron_cod.data.preprocessing import run as preprocess_module
from megatron_cod.data.preprocessing import token_runs
from megatron_cod.data.preprocessing.estimate import estimate
from megatron_cod.data.preprocessing.job import PreprocessJob
from megatron_cod.data.preprocessing.run import PreprocessResult, preprocess
from megatron_cod.data.reading import parts
from megatron_cod.data.sample_corpus import sample_corpus_path
from megatron_cod.data.tokenizers.choice import TokenizerChoice

Jsonl = Callable[..., Path]
BYTES = TokenizerChoice("ByteLevelTokenizer")


def run(source: Path | str, prefix: Path, **options: Any) -> PreprocessResult:
    options.setdefault("tokenizer", BYTES)
    return preprocess(PreprocessJob([str(source)], str(prefix), **options))


def texts_of(prefix: Path | str) -> list[str]:
    """The documents of a byte-level dataset, without their eod."""
    data = IndexedDataset(str(prefix))
    return [bytes(ids[ids < 256].astype(np.uint8)).decode() for ids in data]


def small_parts(monkeypatch: pytest.MonkeyPatch, part: int = 20_000, batch: int = 3000, held: int = 4000) -> None:
    """Divide even a small input into many parts and runs."""
    monkeypatch.setattr(parts, "PART_BYTES", part)
    monkeypatch.setattr(parts, "BATCH_BYTES", batch)
    monkeypatch.setattr(token_runs, "RUN_BYTES", held)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of times, a disk that others use takes minutes


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_megatron_reads_back_the_tokens(
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


@pytest.mark.parametrize("shuffle_seed", [None, 7])
@pytest.mark.slow_except("huggingface-7", "sentencepiece-7")
def test_any_number_of_workers_gives_the_same_bytes(
    choice: TokenizerChoice, documents: list[str], jsonl: Jsonl, tmp_path: Path, shuffle_seed: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    small_parts(monkeypatch)
    lines = [text if number % 7 else " " for number, text in enumerate(documents)]
    source = jsonl(lines + lines[:20])
    with source.open("a") as file:
        file.write("broken\n")
    for name, count in (("one", 1), ("many", 3)):
        run(
            source, tmp_path / name / "d", tokenizer=choice, append_eod=True, workers=count, split="8,1,1",
            max_documents=200, skip_bad_lines=True, deduplicate=True, shuffle_seed=shuffle_seed,
        )  # fmt: skip
    assert content_of(tmp_path / "one") == content_of(tmp_path / "many")


@pytest.mark.slow
def test_result_is_independent_of_parts_batches_and_runs(
    documents: list[str], jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = jsonl(documents)
    options = {"split": "8,2", "shuffle_seed": 3, "deduplicate": True}
    run(source, tmp_path / "large" / "d", **options)
    for name, sizes in (("small", (9_000, 2000, 3000)), ("smaller", (1600, 100, 1))):
        small_parts(monkeypatch, *sizes)
        run(source, tmp_path / name / "d", **options)
        assert content_of(tmp_path / "large") == content_of(tmp_path / name)


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


def test_splits_hold_whole_documents_and_lose_none(documents: list[str], jsonl: Jsonl, tmp_path: Path) -> None:
    result = run(jsonl(documents), tmp_path / "d", split="80,10,10", append_eod=True)
    parts = {name: texts_of(tmp_path / f"d_{name}_text_document") for name in ("train", "valid", "test")}
    assert sorted(itertools.chain(*parts.values())) == sorted(documents)
    assert min(map(len, parts.values())) > 5
    assert [record.split for record in result.datasets.values()] == ["train", "valid", "test"]


def test_a_split_does_not_depend_on_the_order_of_files(documents: list[str], jsonl: Jsonl, tmp_path: Path) -> None:
    first, second = jsonl(documents[:100], "a.jsonl"), jsonl(documents[100:], "b.jsonl")
    for name, order in (("ab", [first, second]), ("ba", [second, first]), ("b", [second])):
        preprocess(PreprocessJob([str(path) for path in order], str(tmp_path / name / "d"), BYTES, split="7,3"))
    valid = {name: texts_of(tmp_path / name / "d_valid_text_document") for name in ("ab", "ba", "b")}
    assert sorted(valid["ab"]) == sorted(valid["ba"])
    assert set(valid["b"]) == set(valid["ab"]) & set(documents[100:])


def test_a_shuffle_is_another_order_of_the_same_documents(documents: list[str], jsonl: Jsonl, tmp_path: Path) -> None:
    source = jsonl(documents)
    orders = {}
    for name, seed in (("one", 1), ("again", 1), ("two", 2), ("none", None)):
        run(source, tmp_path / name / "d", shuffle_seed=seed)
        orders[name] = texts_of(tmp_path / name / "d_text_document")
    assert orders["none"] == documents
    assert sorted(orders["one"]) == sorted(orders["two"]) == sorted(documents)
    assert orders["one"] == orders["again"] != orders["two"]
    places = [documents.index(text) for text in orders["one"]]
    neighbours = sum(abs(after - before) == 1 for before, after in itertools.pairwise(places))
    assert neighbours < 10  # 2 are to be expected


def test_of_duplicates_the_first_stays(jsonl: Jsonl, tmp_path: Path) -> None:
    first = jsonl(["a", "b", "a", "c"], "1.jsonl")
    second = jsonl(["c", " ", "d", "b"], "2.jsonl")
    job = PreprocessJob([str(first), str(second)], str(tmp_path / "d"), BYTES, deduplicate=True)
    result = preprocess(job)
    assert texts_of(tmp_path / "d_text_document") == ["a", "b", "c", "d"]
    assert (result.duplicates, result.empty) == (3, {"text": 1})
    assert next(iter(result.datasets.values())).duplicates == 3


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
def test_reads_plain_text(tmp_path: Path, split_on: str, expected: list[str]) -> None:
    (tmp_path / "in.txt").write_text("one\ntwo\n\nthree\n")
    result = run(tmp_path / "in.txt", tmp_path / "d", split_on=split_on)
    assert texts_of(tmp_path / "d_text_document") == expected
    assert result.empty == {"text": 1 if split_on == "line" else 0}


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


@pytest.mark.parametrize("shuffle_seed", [None, 1])
def test_a_document_that_is_empty_under_one_key_is_counted_for_that_key(
    tmp_path: Path, shuffle_seed: int | None
) -> None:
    pairs = [("t0", "b0"), ("t1", ""), ("", ""), ("t3", " "), ("", "b4"), ("t5", "b5"), ("t0", "b0"), ("t1", "")]
    lines = "".join(json.dumps({"title": title, "body": body}) + "\n" for title, body in pairs)
    (tmp_path / "in.jsonl").write_text(lines)
    options = {"json_keys": ["title", "body"], "deduplicate": True, "holdout_every": 2, "shuffle_seed": shuffle_seed}
    made = run(tmp_path / "in.jsonl", tmp_path / "d", **options)
    assert (made.empty, made.duplicates) == ({"title": 2, "body": 3}, 2)
    for split in ("train", "valid"):
        for key, empty in made.empty.items():
            record = read_record(tmp_path / f"d_{split}_{key}_document")
            assert record is not None and record.empty == empty
    again = run(tmp_path / "in.jsonl", tmp_path / "d", **options)
    assert (again.empty, again.seconds) == (made.empty, 0.0)


def test_max_documents_counts_documents_written(jsonl: Jsonl, tmp_path: Path) -> None:
    result = run(jsonl(["", "a", " \n", "b", "c"]), tmp_path / "d", max_documents=2)
    assert texts_of(tmp_path / "d_text_document") == ["a", "b"]
    assert result.empty == {"text": 2}


def test_rejects_or_counts_bad_lines(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text": "a"}\n{"text": 1}\n\n{"text": "\\ud800"}\n{"text": "b"}\n')
    with pytest.raises(ValueError, match=r"in\.jsonl, line 2: key 'text' holds a int, .*--skip-bad-lines"):
        run(source, tmp_path / "d")
    result = run(source, tmp_path / "d", skip_bad_lines=True)
    assert texts_of(tmp_path / "d_text_document") == ["a", "b"]
    assert (result.empty, result.bad_count) == ({"text": 1}, 2)
    assert "line 4: holds a lone surrogate" in result.bad[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_line_of_an_error_is_right_in_any_part(
    documents: list[str], jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    small_parts(monkeypatch)
    source = jsonl(documents)
    lines = source.read_text().splitlines()
    for number in (150, 200):
        lines[number - 1] = "{"
    source.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"in\.jsonl, line 150: not JSON"):
        run(source, tmp_path / "out" / "d", workers=workers)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["d.partial"]
    result = run(source, tmp_path / "out" / "d", workers=workers, skip_bad_lines=True)
    assert [message.split(": ")[0].split(", ")[1] for message in result.bad] == ["line 150", "line 200"]
    assert texts_of(tmp_path / "out" / "d_text_document") == [*documents[:149], *documents[150:199], *documents[200:]]


def test_a_document_that_the_index_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_runs, "_LONGEST", 10)
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"text": "nine here"}) + "\n" + json.dumps({"text": "eleven here"}) + "\n")
    with pytest.raises(ValueError, match=r"in\.jsonl, line 2: the document has 12 tokens, more than Megatron's 10"):
        run(source, tmp_path / "d", append_eod=True)


def test_small_failed_run_leaves_no_files(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{\n')
    with pytest.raises(ValueError, match=r"in\.jsonl, line 2: not JSON"):
        run(tmp_path / "in.jsonl", tmp_path / "out" / "d", workers=2)
    assert content_of(tmp_path / "out") == {}


def test_a_parts_bad_lines_are_an_error_when_they_are_not_skipped_any_more(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "a"}\n{\n')
    with pytest.raises(ValueError, match="too few"):
        run(source, tmp_path / "d", skip_bad_lines=True, holdout_every=2)
    with pytest.raises(ValueError, match=r"in\.jsonl, line 2: not JSON"):
        run(source, tmp_path / "d")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_run_leaves_no_finished_files(
    documents: list[str], jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type
) -> None:
    small_parts(monkeypatch)
    source = jsonl(documents)
    run(source, tmp_path / "undisturbed" / "d")
    seen = []

    def stop_halfway(*_: object) -> None:
        seen.append(sorted(path.name for path in (tmp_path / "out").iterdir()))
        if len(seen) == 50:
            raise error

    monkeypatch.setattr(preprocess_module.PreprocessingProgress, "update", stop_halfway)
    with pytest.raises(error):
        run(source, tmp_path / "out" / "d")
    assert {tuple(names) for names in seen} == {("d.partial",)}
    with pytest.raises(ValueError, match=r"d\.partial holds an unfinished run with other options; repeat that command"):
        run(source, tmp_path / "out" / "d", append_eod=True)
    monkeypatch.undo()
    small_parts(monkeypatch)
    run(source, tmp_path / "out" / "d")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "undisturbed")


def test_a_failed_second_run_keeps_the_first(jsonl: Jsonl, tmp_path: Path) -> None:
    run(jsonl(["first"]), tmp_path / "out" / "d")
    before = content_of(tmp_path / "out")
    with pytest.raises(ValueError, match="no documents in 1 input"):
        run(jsonl(["", " "]), tmp_path / "out" / "d", overwrite=True)
    assert content_of(tmp_path / "out") == before


def test_keeps_existing_output_without_overwrite(jsonl: Jsonl, tmp_path: Path) -> None:
    run(jsonl(["first"]), tmp_path / "d")
    second = jsonl(["second"])
    with pytest.raises(ValueError, match=r"exists already: .*d_text_document\.bin.*--overwrite"):
        run(second, tmp_path / "d")
    run(second, tmp_path / "d", overwrite=True)
    assert texts_of(tmp_path / "d_text_document") == ["second"]
    assert check_prefix(tmp_path / "d_text_document").documents == 1


def test_the_same_job_again_has_nothing_to_do(jsonl: Jsonl, tmp_path: Path) -> None:
    source = jsonl(["text", ""])
    made = run(source, tmp_path / "d")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("d*")}
    again = run(source, tmp_path / "d", workers=2)
    assert (again.datasets, again.empty, again.seconds) == (made.datasets, {"text": 1}, 0.0)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("d*")}
    with pytest.raises(ValueError, match="exists already"):
        run(source, tmp_path / "d", append_eod=True)


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
def test_rejects_bad_options(jsonl: Jsonl, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        run(jsonl(["text"]), tmp_path / "out" / "d", **options)
    assert says in str(caught.value)
    assert content_of(tmp_path).keys() == {"in.jsonl"}


def test_a_dataset_may_be_empty_where_that_is_allowed(jsonl: Jsonl, tmp_path: Path) -> None:
    """Its files are there, so that the same job finds nothing to do, and training refuses them."""
    source = jsonl(["one", "two"])
    made = run(source, tmp_path / "d", holdout_every=100, allow_empty=True)
    train, valid = made.datasets
    assert [made.datasets[prefix].documents for prefix in (train, valid)] == [2, 0]
    assert len(IndexedDataset(train).document_indices) == 3
    with pytest.raises(ValueError, match=r"d_valid_text_document is empty"):
        check_prefix(valid)
    again = run(source, tmp_path / "d", holdout_every=100, allow_empty=True)
    assert again.datasets == made.datasets and again.seconds == 0.0
    with pytest.raises(ValueError, match="no documents in 1 input file"):
        run(jsonl([" "]), tmp_path / "e", allow_empty=True)


def test_json_keys_do_not_go_with_plain_text(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("text")
    with pytest.raises(ValueError, match="one of the inputs is plain text"):
        run(tmp_path / "in.txt", tmp_path / "d", json_keys=["body"])


def test_estimate_is_near_the_truth_and_writes_nothing(
    documents: list[str], jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "BATCH_DOCUMENTS", 30)
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
from megatron_cod.data.preprocessing.worker_pool import run_tasks

def numbers():
    for number in range(100):
        if number == 50:
            print("killed", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        yield number

list(run_tasks(lambda number, report: number, numbers(), 3, lambda sums: None))
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=30)
    assert (done.stdout, done.returncode) == (b"killed\n", -9)
