"""Models that come with tokenizer files of another library: an import converts them, and an export has the result."""

import json

import pytest
import yaml
from transformers import AutoTokenizer

from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.importing import ImportJob, import_model
from tests.data.tokenizers import native
from tests.huggingface.models import make_model

RANKS = native.ranks_of([["t", "h"], ["th", "e"]])


@pytest.fixture
def mistral(tmp_path):
    return native.write_tekken(make_model("mistral", tmp_path / "hf"), RANKS)


def test_tekken_of_an_imported_model_is_converted_and_exported(mistral, tmp_path):
    told: list[str] = []
    import_model(ImportJob(mistral, tmp_path / "run", verify=False), told.append)
    assert any(line.startswith("note: the tokenizer is converted from tekken.json") for line in told)
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert recipe["tokenizer-type"] == "HuggingFaceTokenizer"
    assert recipe["tokenizer-model"] == str(tmp_path / "run" / "huggingface")
    export_model(ExportJob(tmp_path / "run", tmp_path / "out", verify=False))
    first = len(native.SPECIAL) + native.UNUSED
    for folder in (tmp_path / "run" / "huggingface", tmp_path / "out"):
        assert not (folder / "tekken.json").exists()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer("the")["input_ids"] == [1, first + RANKS[b"the"]]
        assert tokenizer.eos_token_id == 2


def test_an_unknown_tiktoken_file_is_a_note(tmp_path):
    model = make_model("llama", tmp_path / "hf")
    native.write_tiktoken(model / "own.tiktoken", RANKS)
    told: list[str] = []
    import_model(ImportJob(model, tmp_path / "run", verify=False), told.append)
    assert any("the tokenizer is not taken over" in line and "give --encoding" in line for line in told)
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["tokenizer-type"] == "NullTokenizer"


def test_a_tokenizer_json_is_taken_before_tekken(mistral, tmp_path):
    (mistral / "tokenizer.json").write_text("{}")
    (mistral / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    import_model(ImportJob(mistral, tmp_path / "run", verify=False))
    assert (tmp_path / "run" / "huggingface" / "tokenizer.json").read_text() == "{}"
