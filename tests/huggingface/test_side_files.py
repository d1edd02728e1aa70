"""After fine-tuning every file beside the weights says the same template and the same ends, whoever reads it."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig

from megatron_cod.errors import UserError
from megatron_cod.huggingface import companions, side_files
from tests.data.chat.toys import CHATML_UNMARKED, hugging_face_tokenizer

OTHER = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
ENDS_WITH_EOS = CHATML_UNMARKED.replace("+ '<|im_end|>'", "+ eos_token")
END, EOS = 2, 0


def args(template=CHATML_UNMARKED, **more) -> Namespace:
    return Namespace(
        **{
            "chat_template": template,
            "tokenizer_model": None,
            "tokenizer_type": "HuggingFaceTokenizer",
            "vocab_size": 400,
        }
        | more
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    hugging_face_tokenizer(folder, None)
    return folder


@pytest.fixture
def base(tokenizer, tmp_path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    companions.copy(tokenizer, folder)
    return folder


def change(path: Path, **said) -> None:
    old = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(old | said))


def template_of_llama_cpp(folder: Path) -> str:
    """As its converter looks for it (gguf's SpecialVocab): the tokenizer's config before the file."""
    said = json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template")
    return said if said is not None else (folder / "chat_template.jinja").read_text()


def template_of_older_transformers(folder: Path) -> str | None:
    return json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template")


def named(name: str, text: str) -> dict[str, str]:
    return {"name": name, "template": text}


TEMPLATES = {
    "none": {},
    "inside the tokenizer's config": {"tokenizer_config.json": {"chat_template": OTHER}},
    "several inside": {
        "tokenizer_config.json": {"chat_template": [named("default", OTHER), named("tool_use", OTHER)]},
    },
    "an older file": {"chat_template.json": {"chat_template": OTHER}},
    "all": {"tokenizer_config.json": {"chat_template": OTHER}, "chat_template.json": {"chat_template": OTHER}},
}


@pytest.mark.parametrize("files", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("apart", [False, True], ids=["", "a file apart"])
def test_every_reader_finds_the_template_of_training(base, files, apart):
    for name, said in files.items():
        change(base / name, **said)
    if apart:
        (base / "chat_template.jinja").write_text(OTHER)
    assert side_files.agree(args(), base, {}) == []
    assert AutoTokenizer.from_pretrained(base).chat_template == CHATML_UNMARKED
    assert template_of_llama_cpp(base) == template_of_older_transformers(base) == CHATML_UNMARKED
    assert not (base / "chat_template.json").exists()


GENERATION = {
    "none": (None, [END, EOS]),
    "the base's end": ({"eos_token_id": EOS, "max_new_tokens": 64}, [END, EOS]),
    "several": ({"eos_token_id": [EOS, 7], "temperature": 0.6}, [END, EOS, 7]),
    "no end": ({"max_new_tokens": 64}, [END, EOS]),
    "null": ({"eos_token_id": None}, [END, EOS]),
}


@pytest.mark.parametrize(("said", "ends"), GENERATION.values(), ids=GENERATION)
def test_every_reader_finds_the_end_of_an_answer(base, said, ends):
    if said is not None:
        change(base / "generation_config.json", **said)
    change(base / "special_tokens_map.json", eos_token={"content": "<|endoftext|>", "lstrip": False}, pad_token="x")
    config = {"eos_token_id": EOS, "bos_token_id": 5, "pad_token_id": None}
    side_files.agree(args(), base, config)
    assert config == {"eos_token_id": END, "bos_token_id": 5, "pad_token_id": None}
    found = json.loads((base / "generation_config.json").read_text())
    assert found == (said or {}) | {"eos_token_id": ends}
    assert GenerationConfig.from_pretrained(base).eos_token_id == ends
    assert AutoTokenizer.from_pretrained(base).eos_token_id == END
    assert json.loads((base / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
    tokens = json.loads((base / "special_tokens_map.json").read_text())
    assert tokens == {"eos_token": {"content": "<|im_end|>", "lstrip": False}, "pad_token": "x"}


def test_keeps_ids_of_tokenizer(base, tokenizer):
    side_files.agree(args(), base, {})
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (tokenizer, base))
    text = "How is <|im_start|> our Union?<|im_end|><|endoftext|>"
    assert before(text)["input_ids"] == after(text)["input_ids"]


def test_a_template_that_writes_the_tokenizers_end_keeps_it(base):
    config = {}
    assert side_files.agree(args(ENDS_WITH_EOS), base, config) == []
    assert config["eos_token_id"] == EOS and AutoTokenizer.from_pretrained(base).eos_token_id == EOS
    assert json.loads((base / "generation_config.json").read_text()) == {"eos_token_id": [EOS]}


def test_an_end_that_is_no_token_is_reported(base):
    config = {}
    [line] = side_files.agree(args(CHATML_UNMARKED.replace("<|im_end|>", "###")), base, config)
    assert "ends an answer with no special token" in line
    assert config["eos_token_id"] == EOS


def test_model_without_tokenizer_is_not_treated_as_bytes(tmp_path):
    config = {}
    [line] = side_files.agree(args(), tmp_path, config)
    assert "without a tokenizer" in line and "eos_token_id" not in config
    assert not (tmp_path / "generation_config.json").exists()


def test_a_model_of_bytes_ends_at_its_end_of_document(tmp_path):
    config: dict[str, int | None] = {}
    side_files.name_ids(args(None, tokenizer_type="NullTokenizer", vocab_size=257), tmp_path, config)
    assert config == {"eos_token_id": 256, "bos_token_id": None, "pad_token_id": None}


def test_a_model_from_scratch_has_the_ids_of_its_tokenizer(base):
    """A loader would take those of the Llama that its class is named after."""
    config: dict[str, int | None] = {}
    side_files.name_ids(args(None), base, config)
    assert config == {"eos_token_id": EOS, "bos_token_id": None, "pad_token_id": None}


def test_without_a_template_files_stay_as_they_are(base):
    change(base / "generation_config.json", eos_token_id=7)
    before, config = {path.name: path.read_bytes() for path in base.iterdir()}, {"eos_token_id": 7}
    assert side_files.agree(args(None), base, config) == [] and config == {"eos_token_id": 7}
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_the_tokenizer_of_training_replaces_that_of_the_imported_model(base, tmp_path):
    own, target = tmp_path / "own", tmp_path / "out"
    hugging_face_tokenizer(own, None, vocabulary=350)
    change(base / "generation_config.json", eos_token_id=[0, 9], max_new_tokens=64)
    for model, replaced in ((own, True), (base, False), (tmp_path / "gone", False)):
        target = tmp_path / f"out of {model.name}"
        config = {"eos_token_id": 9, "hidden_size": 64}
        companions.copy_for_export(args(tokenizer_model=str(model)), base, target, config)
        expected = own if replaced else base
        assert (target / "tokenizer.json").read_bytes() == (expected / "tokenizer.json").read_bytes()
        ids = {"eos_token_id": EOS, "bos_token_id": None, "pad_token_id": None} if replaced else {"eos_token_id": 9}
        assert config == ids | {"hidden_size": 64}
        said = json.loads((target / "generation_config.json").read_text())
        assert said == {"max_new_tokens": 64, "eos_token_id": EOS if replaced else [0, 9]}


def test_a_file_that_is_no_json_is_named(base):
    (base / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config\.json cannot be read"):
        side_files.agree(args(), base, {})
