"""Finished parts and finished datasets are treated as another job's as soon as anything differs that they depend on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_cod.data import megatron_api  # noqa: F401 - once, and not in each process that describes a tokenizer
from megatron_cod.data.preprocessing import run as preprocess_module
from megatron_cod.data.preprocessing.job import PreprocessJob
from megatron_cod.data.preprocessing.run import preprocess
from megatron_cod.data.tokenizers.choice import TokenizerChoice
from megatron_cod.data.tokenizers.document_encoder import DocumentEncoder

Change = Callable[[PreprocessJob], PreprocessJob]


def with_(**options: object) -> Change:
    return lambda job: replace(job, **options)


def tokenizer_with(**values: object) -> Change:
    return lambda job: replace(job, tokenizer=replace(job.tokenizer, **values))


def longer_input(job: PreprocessJob) -> PreprocessJob:
    with Path(job.inputs[0]).open("a") as file:
        file.write('{"text": "one more"}\n')
    return job


def touched_input(job: PreprocessJob) -> PreprocessJob:
    os.utime(job.inputs[0], ns=(1, 1))
    return job


def other_model(job: PreprocessJob) -> PreprocessJob:
    path = job.tokenizer.model
    path.write_bytes(path.read_bytes() + b"\x22\x00")
    return job


def other_eos(job: PreprocessJob) -> PreprocessJob:
    path = job.tokenizer.model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "<s>"}))
    return job


def fewer_merges(job: PreprocessJob) -> PreprocessJob:
    path = job.tokenizer.model / "merges.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:100]))
    return job


@pytest.fixture
def jobs(
    tmp_path: Path,
    documents: list[str],
    sentencepiece_model: Path,
    huggingface_folder: Path,
    huggingface_parts: Path,
) -> dict[str, PreprocessJob]:
    """A job with each kind of tokenizer, and one whose Hugging Face folder has no tokenizer.json."""
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text, "more": text}) + "\n" for text in documents[:10]))
    shutil.copy(sentencepiece_model, tmp_path / "x.model")
    shutil.copytree(huggingface_folder, tmp_path / "whole")
    shutil.copytree(huggingface_parts, tmp_path / "parts")
    tokenizers = {
        "bytes": TokenizerChoice("ByteLevelTokenizer"),
        "pieces": TokenizerChoice("SentencePieceTokenizer", tmp_path / "x.model"),
        "whole": TokenizerChoice("HuggingFaceTokenizer", tmp_path / "whole"),
        "parts": TokenizerChoice("HuggingFaceTokenizer", tmp_path / "parts"),
    }
    return {
        name: PreprocessJob([str(source)], str(tmp_path / "out" / "d"), tokenizer)
        for name, tokenizer in tokenizers.items()
    }


CHANGES: dict[str, tuple[str, Change, str]] = {
    "input's size": ("bytes", longer_input, "inputs"),
    "input's time": ("bytes", touched_input, "inputs"),
    "input's format": ("bytes", with_(input_format="text"), "inputs"),
    "json keys": ("bytes", with_(json_keys=["more"]), "options"),
    "split on": ("bytes", with_(split_on="line"), "options"),
    "append eod": ("bytes", with_(append_eod=True), "options"),
    "shuffle seed": ("bytes", with_(shuffle_seed=1), "options"),
    "max documents": ("bytes", with_(max_documents=3), "options"),
    "whole texts": ("bytes", with_(whole_texts=True), "options"),
    "type": ("pieces", tokenizer_with(type="Llama2Tokenizer"), "tokenizer type"),
    "model": ("pieces", other_model, "tokenizer files"),
    "eos token": ("whole", other_eos, "tokenizer files and eod id"),
    "special tokens": ("pieces", tokenizer_with(hf_special_tokens=False), "hf special tokens"),
    "merges": ("parts", fewer_merges, "tokenizer files"),
}


def break_off(job: PreprocessJob, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(preprocess_module, "make_plan", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            preprocess(job)


@pytest.mark.parametrize(("tokenizer", "change", "other"), CHANGES.values(), ids=CHANGES)
def test_finished_parts_of_another_job(
    jobs: dict[str, PreprocessJob], monkeypatch: pytest.MonkeyPatch, tokenizer: str, change: Change, other: str
) -> None:
    job = jobs[tokenizer]
    break_off(job, monkeypatch)
    with pytest.raises(ValueError, match=f"unfinished run with other {other}; repeat that command"):
        preprocess(change(job))


IN_PLACE = {name: change for name, change in CHANGES.items() if name != "json keys"}  # which are in the output's name


@pytest.mark.parametrize(("tokenizer", "change", "other"), IN_PLACE.values(), ids=IN_PLACE)
def test_a_finished_dataset_of_another_job(
    jobs: dict[str, PreprocessJob], tokenizer: str, change: Change, other: str
) -> None:
    job = jobs[tokenizer]
    preprocess(job)
    assert preprocess(job).seconds == 0.0
    with pytest.raises(ValueError, match=f"output exists already: .*, made with other {other}; choose another prefix"):
        preprocess(change(job))


@pytest.mark.parametrize("name", ["eod", "vocab_size"])
def test_detects_changed_ids_of_same_files(
    jobs: dict[str, PreprocessJob], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As another version of it may."""
    job = jobs["pieces"]
    other_place = replace(job, output_prefix=f"{job.output_prefix}2")
    preprocess(job)
    break_off(other_place, monkeypatch)

    class Other(DocumentEncoder):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            setattr(self, name, getattr(self, name) + 1)

    monkeypatch.setattr(preprocess_module, "DocumentEncoder", Other)
    said = {"eod": "eod id", "vocab_size": "vocab size"}[name]
    for again in (job, other_place):
        with pytest.raises(ValueError, match=f"with other {said}; "):
            preprocess(again)


@pytest.mark.parametrize("tokenizer", ["bytes", "parts"])
def test_the_same_job_resumes(
    jobs: dict[str, PreprocessJob], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tokenizer: str
) -> None:
    """What no id depends on may differ: a chat template, the number of workers, what is decided in the merge."""
    job = jobs[tokenizer]
    break_off(job, monkeypatch)
    if tokenizer == "parts":
        path = job.tokenizer.model / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "x"}))
    preprocess(replace(job, workers=2, holdout_every=5))
    assert "resuming with the finished parts" in capsys.readouterr().err
