from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from megatron_cod.data.megatron_api import build_tokenizer
from megatron_cod.data.tokenizers.choice import BYTE_VOCABULARY, TokenizerChoice
from megatron_cod.data.tokenizers.document_encoder import DocumentEncoder


def test_the_training_arguments_make_a_tokenizer_with_the_same_ids(choice: TokenizerChoice) -> None:
    """Through Megatron's own argument parser and builder, as a training run does."""
    from megatron.training.arguments import _add_tokenizer_args

    args = _add_tokenizer_args(argparse.ArgumentParser()).parse_args(choice.training_arguments())
    args.pad_vocab_size = False
    trained_with = build_tokenizer(args)
    encoder = DocumentEncoder(choice, append_eod=True)
    text = "The state of our union \u2014 2021."
    ids = encoder(text)
    assert trained_with.vocab_size == encoder.vocab_size
    assert trained_with.eod == encoder.eod == ids[-1]
    if choice.type != "ByteLevelTokenizer":
        assert trained_with.tokenize(text) == ids[:-1].tolist()


def test_bytes_are_ids_as_in_megatrons_byte_level_library() -> None:
    from megatron.core.tokenizers.text.libraries.bytelevel_tokenizer import ByteLevelTokenizer

    encoder = DocumentEncoder(TokenizerChoice("ByteLevelTokenizer"), append_eod=True)
    text = "na\u00efve \u2014 \U0001f600\n\x00\x7f"
    assert encoder(text).tolist() == [*ByteLevelTokenizer().text_to_ids(text), 256]
    assert (encoder.vocab_size, encoder.eod, encoder.dtype) == (BYTE_VOCABULARY, 256, np.uint16)


def test_huggingface_special_tokens_can_be_skipped(huggingface_folder: Path) -> None:
    with_bos = DocumentEncoder(TokenizerChoice("HuggingFaceTokenizer", huggingface_folder), True)
    without = DocumentEncoder(
        TokenizerChoice("HuggingFaceTokenizer", huggingface_folder, hf_special_tokens=False), True
    )
    assert with_bos("We the people").tolist() == [0, *without("We the people")]


def test_a_folder_that_changes_is_read_again(huggingface_parts: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(huggingface_parts, tmp_path / "hf")
    choice = TokenizerChoice("HuggingFaceTokenizer", folder)
    before = DocumentEncoder(choice, False)("We the people")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    assert len(DocumentEncoder(choice, False)("We the people")) == len("We the people") > len(before)


def test_a_tokenizer_that_ends_documents_itself_gets_no_second_eod(huggingface_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(huggingface_folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["post_processor"]["single"].reverse()
    content["post_processor"]["single"][-1]["SpecialToken"]["id"] = "<|end|>"
    content["post_processor"]["special_tokens"] = {"<|end|>": {"id": "<|end|>", "ids": [1], "tokens": ["<|end|>"]}}
    path.write_text(json.dumps(content))
    ids = DocumentEncoder(TokenizerChoice("HuggingFaceTokenizer", path), append_eod=True)("We the people")
    assert ids.tolist().count(1) == 1
    assert ids[-1] == 1


def test_append_eod_needs_one(huggingface_folder: Path, tmp_path: Path) -> None:
    shutil.copy(huggingface_folder / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    choice = TokenizerChoice("HuggingFaceTokenizer", tmp_path)
    assert DocumentEncoder(choice, append_eod=False).eod is None
    with pytest.raises(ValueError, match="has no end-of-sequence token"):
        DocumentEncoder(choice, append_eod=True)


def test_rejects_bad_choices(tmp_path: Path, sentencepiece_model: Path) -> None:
    text = tmp_path / "text.model"
    text.write_text("not a model")
    for choice, says in [
        (TokenizerChoice("Tokenizer"), "is unknown; choose from SentencePieceTokenizer"),
        (TokenizerChoice("SentencePieceTokenizer"), "needs --tokenizer-model: a SentencePiece .model file"),
        (TokenizerChoice("ByteLevelTokenizer", sentencepiece_model), "takes no --tokenizer-model"),
        (TokenizerChoice("HuggingFaceTokenizer", tmp_path / "none"), "does not exist"),
        (TokenizerChoice("SentencePieceTokenizer", text), "cannot read tokenizer model"),
        (TokenizerChoice("SentencePieceTokenizer", tmp_path), "cannot read tokenizer model"),
        (TokenizerChoice("HuggingFaceTokenizer", tmp_path), "cannot read tokenizer model"),
    ]:
        with pytest.raises(ValueError) as caught:
            DocumentEncoder(choice, append_eod=False)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
