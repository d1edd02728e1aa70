"""Another tokenizer than a dataset's is noticed by training and by evaluation, and nothing else is treated as one."""

from __future__ import annotations

import json
import shutil
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_cod.data.datasets.manifest import read_record, record_path
from megatron_cod.data.evaluation.token_sets import Source, read_dataset
from megatron_cod.data.preprocessing.run import PreprocessJob, preprocess
from megatron_cod.data.tokenizers.choice import TokenizerChoice
from megatron_cod.training.data.dataset_checks import check_data
from megatron_cod.training.data.tokenizer_in_use import trained_with
from megatron_cod.training.flags.parser import build_parser

Check = Callable[..., str | None]


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    return build_parser()


@pytest.fixture
def check(parser: ArgumentParser) -> Check:
    """What training says of a dataset with these flags; evaluation says the same."""

    def run(prefix: Path, *flags: str) -> str | None:
        args = parser.parse_args(["--train-data-path", str(prefix), "--eval-iters", "0", *flags])
        said = []
        for look in (
            lambda: check_data(args, 1024),
            lambda: read_dataset(Source("x", str(prefix)), 1024, trained_with(args)),
        ):
            try:
                look()
            except ValueError as error:
                said.append(str(error))
        assert len(said) in (0, 2) and len({each.split(";")[0] for each in said}) < 2
        assert not any("\n" in each for each in said)
        return said[0] if said else None

    return run


def made_with(choice: TokenizerChoice, folder: Path, append_eod: bool = True) -> Path:
    source = folder / "in.jsonl"
    source.write_text('{"text": "We the people"}\n')
    preprocess(PreprocessJob([str(source)], str(folder / "d"), choice, append_eod=append_eod))
    return folder / "d_text_document"


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def forget(prefix: Path, **values: object) -> None:
    """The manifest as an earlier version wrote it."""
    content = json.loads(record_path(prefix).read_text())
    for name in ("tokenizer_files", "hf_special_tokens"):
        content.pop(name, None)
    for entry in content["inputs"]:
        entry.pop("format", None)
    record_path(prefix).write_text(json.dumps({**content, **values}))
    assert read_record(prefix) is not None


@pytest.fixture
def folder(huggingface_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(huggingface_folder, tmp_path / "hf")


@pytest.fixture
def dataset(folder: Path, tmp_path: Path) -> Path:
    return made_with(TokenizerChoice("HuggingFaceTokenizer", folder), tmp_path)


def hugging_face(folder: Path) -> list[str]:
    return ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(folder)]


def test_another_end_of_document(check: Check, dataset: Path, folder: Path, tmp_path: Path) -> None:
    assert check(dataset, *hugging_face(folder)) is None
    assert check(dataset, *hugging_face(folder / "tokenizer.json")) is None
    elsewhere = shutil.copytree(folder, tmp_path / "moved")
    change_json(elsewhere / "tokenizer_config.json", chat_template="x", model_max_length=7)
    assert check(dataset, *hugging_face(elsewhere)) is None
    change_json(folder / "tokenizer_config.json", eos_token="<s>")
    said = str(check(dataset, *hugging_face(folder)))
    assert f"but --tokenizer-model {folder} has another tokenizer_config.json: the same ids may mean other text" in said


def test_merges_that_were_cut(check: Check, huggingface_parts: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(huggingface_parts, tmp_path / "hf")
    dataset = made_with(TokenizerChoice("HuggingFaceTokenizer", folder), tmp_path)
    assert check(dataset, *hugging_face(folder)) is None
    merges = (folder / "merges.txt").read_text().splitlines(keepends=True)
    (folder / "merges.txt").write_text("".join(merges[:50]))
    assert "has another merges.txt" in str(check(dataset, *hugging_face(folder)))
    (folder / "merges.txt").write_text("".join(merges))
    (folder / "added_tokens.json").write_text('{"<x>": 800}')
    assert "has another added_tokens.json" in str(check(dataset, *hugging_face(folder)))


def test_compares_ids_alone(check: Check, dataset: Path, folder: Path, tmp_path: Path) -> None:
    numbers = ["--tokenizer-type", "NullTokenizer", "--vocab-size"]
    said = str(check(dataset, *numbers, "1000"))
    assert f"{folder} of 800 ids, of which 1 ends a document, but NullTokenizer has 1000, of which 999 does" in said
    assert "for ids alone give --vocab-size 800 --null-tokenizer-eod-id 1; train with" in said
    assert check(dataset, *numbers, "800") is not None
    assert check(dataset, *numbers, "800", "--null-tokenizer-eod-id", "1") is None
    assert check(dataset, *numbers, "900", "--null-tokenizer-eod-id", "1") is not None
    (tmp_path / "without").mkdir()
    without = made_with(TokenizerChoice("HuggingFaceTokenizer", folder), tmp_path / "without", append_eod=False)
    assert check(without, *numbers, "800") is None
    said = str(check(without, *numbers, "801"))
    assert "of 800 ids, but NullTokenizer has 801; for ids alone give --vocab-size 800; train with" in said


def test_compares_tokenizer_types(check: Check, dataset: Path, sentencepiece_model: Path, tmp_path: Path) -> None:
    pieces = made_with(TokenizerChoice("SentencePieceTokenizer", sentencepiece_model), tmp_path / "hf")
    for name in ("SentencePieceTokenizer", "Llama2Tokenizer"):
        assert check(pieces, "--tokenizer-type", name, "--tokenizer-model", str(sentencepiece_model)) is None
    on_the_hub = hugging_face(Path("some/hub-name"))
    assert "but the model has HuggingFaceTokenizer some/hub-name" in str(check(pieces, *on_the_hub))
    assert check(dataset, *on_the_hub) is None
    assert check(dataset) is None


def test_manifests_of_earlier_versions(check: Check, dataset: Path, folder: Path) -> None:
    forget(dataset)
    assert check(dataset, *hugging_face(folder)) is None
    forget(dataset, model_sha256="0" * 64)
    assert "(sha256 000000000000), but" in str(check(dataset, *hugging_face(folder)))
    forget(dataset, model_sha256=None)
    assert check(dataset, *hugging_face(folder)) is None
    change_json(folder / "tokenizer_config.json", eos_token="<s>")
    assert "and 1 as end of document, but that of HuggingFaceTokenizer" in str(check(dataset, *hugging_face(folder)))
