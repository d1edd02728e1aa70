"""Ids are shown as the text they were made of, or as ids where nobody can tell it any more."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_cod.cli import inspect
from megatron_cod.data.datasets.inspect import decoder
from megatron_cod.data.datasets.manifest import read_record
from megatron_cod.data.preprocessing.run import PreprocessJob, preprocess
from megatron_cod.data.tokenizers.choice import TokenizerChoice

TEXT = "We the people na\u00efve, and ."


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[[], str]:
    """What the program says of the dataset."""

    def run() -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["inspect_data.py", str(tmp_path / "d_text_document")])
        inspect.main()
        return capsys.readouterr().out

    return run


def make(tmp_path: Path, choice: TokenizerChoice) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"text": TEXT}) + "\n")
    preprocess(PreprocessJob([str(source)], str(tmp_path / "d"), choice, append_eod=True))


@pytest.mark.slow_except("bytes", "huggingface", "sentencepiece")
def test_each_kind_of_tokenizer_gives_the_text_back(choice: TokenizerChoice, tmp_path: Path) -> None:
    make(tmp_path, choice)
    record = read_record(tmp_path / "d_text_document")
    assert record is not None
    decode, why = decoder(record)
    assert decode is not None and why == ""
    numbers = choice.build().tokenize(TEXT) if choice.model else list(TEXT.encode())
    assert TEXT in decode([*numbers, record.eod_id])


def test_a_folder_without_tokenizer_json(huggingface_parts: Path, tmp_path: Path, show: Callable[[], str]) -> None:
    make(tmp_path, TokenizerChoice("HuggingFaceTokenizer", huggingface_parts))
    assert "We the people" in show()


def test_a_model_that_was_replaced(sentencepiece_model: Path, tmp_path: Path, show: Callable[[], str]) -> None:
    """By a smaller one here, which does not even have the ids."""
    from megatron_cod.data.sample_corpus import sample_corpus_path
    from megatron_cod.data.tokenizers.sentencepiece_training import TokenizerTraining, train_tokenizer

    model = Path(shutil.copy(sentencepiece_model, tmp_path / "x.model"))
    make(tmp_path, TokenizerChoice("SentencePieceTokenizer", model))
    assert "We the people" in show()
    smaller = TokenizerTraining([str(sample_corpus_path())], str(tmp_path / "small"), vocab_size=400)
    shutil.copy(train_tokenizer(smaller).model, model)
    said = show()
    assert f"{model} is not what the dataset was made with, but changed; so ids are shown" in said
    assert "We the people" not in said
    model.unlink()
    assert f"{model} is not here; so ids are shown" in show()


def test_a_folder_that_changed_or_cannot_be_read(
    huggingface_folder: Path, tmp_path: Path, show: Callable[[], str]
) -> None:
    folder = shutil.copytree(huggingface_folder, tmp_path / "hf")
    make(tmp_path, TokenizerChoice("HuggingFaceTokenizer", folder))
    (folder / "tokenizer.json").write_text("{")
    assert f"{folder} is not what the dataset was made with, but changed in tokenizer.json; so ids are shown" in show()
    path = tmp_path / "d_text_document.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "tokenizer_files": {}, "model_sha256": None}))  # nothing to compare with
    said = show()
    assert f"cannot read tokenizer model {folder} as HuggingFaceTokenizer: " in said and "; so ids are shown" in said
