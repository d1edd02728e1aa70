"""Real text and small tokenizers trained on it, once a session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_cod.data.sample_corpus import sample_corpus_path
from megatron_cod.data.tokenizers.choice import TokenizerChoice
from megatron_cod.data.tokenizers.sentencepiece_training import TokenizerTraining, train_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def speeches() -> list[str]:
    with sample_corpus_path().open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


@pytest.fixture(scope="session")
def documents(speeches: list[str]) -> list[str]:
    """240 short documents of real text."""
    return [speech[start : start + 1500] for speech in speeches for start in range(0, 15000, 1500)]


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("sentencepiece") / "tok"
    job = TokenizerTraining([str(sample_corpus_path())], str(prefix), vocab_size=1000)
    return train_tokenizer(job).model


@pytest.fixture(scope="session")
def huggingface_folder(tmp_path_factory: pytest.TempPathFactory, speeches: list[str]) -> Path:
    """A byte-level BPE as GPT-2's, which puts <s> before each text as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    folder = tmp_path_factory.mktemp("huggingface")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=["<s>", "<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(speeches[:6], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def huggingface_parts(tmp_path_factory: pytest.TempPathFactory, huggingface_folder: Path) -> Path:
    """The same vocabulary in a folder without tokenizer.json, as older ones are."""
    folder = tmp_path_factory.mktemp("parts")
    model = json.loads((huggingface_folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "".join(" ".join(pair) + "\n" for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    config = json.loads((huggingface_folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "GPT2Tokenizer"}))
    return folder


@pytest.fixture(params=["bytes", "sentencepiece", "huggingface", "huggingface-plain"])
def choice(request: pytest.FixtureRequest, sentencepiece_model: Path, huggingface_folder: Path) -> TokenizerChoice:
    """Every kind of tokenizer in turn."""
    return {
        "bytes": TokenizerChoice("ByteLevelTokenizer"),
        "sentencepiece": TokenizerChoice("SentencePieceTokenizer", sentencepiece_model),
        "huggingface": TokenizerChoice("HuggingFaceTokenizer", huggingface_folder),
        "huggingface-plain": TokenizerChoice(
            "HuggingFaceTokenizer", huggingface_folder / "tokenizer.json", hf_special_tokens=False
        ),
    }[request.param]


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write texts as JSON lines and give the file."""

    def write(texts: list[str], name: str = "in.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def tool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program of tools/ as a user does."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    return run
