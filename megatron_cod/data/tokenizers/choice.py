"""The chosen tokenizer, and Megatron's own, built by Megatron's builder."""

from __future__ import annotations

import logging
import warnings
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cod.data.tokenizers.files import tokenizer_files
from megatron_cod.data.tokenizers.native_files import check_as_it_is
from megatron_cod.errors import UserError

BYTE_VOCABULARY = 257  # 256 byte values and the end-of-document id


@dataclass(frozen=True)
class _Kind:
    megatron_type: str
    model: str | None  # what --tokenizer-model must be
    family: str  # types of one read the same model to the same ids


TOKENIZER_TYPES: dict[str, _Kind] = {
    "SentencePieceTokenizer": _Kind("SentencePieceTokenizer", "a SentencePiece .model file", "pieces"),
    "GPTSentencePieceTokenizer": _Kind("GPTSentencePieceTokenizer", "a SentencePiece .model file", "pieces"),
    "Llama2Tokenizer": _Kind("Llama2Tokenizer", "a SentencePiece .model file", "pieces"),
    "HuggingFaceTokenizer": _Kind("HuggingFaceTokenizer", "a folder with tokenizer.json, or that file", "Hugging Face"),
    # Megatron-Core has a byte-level library but offers training no --tokenizer-type for it, and its
    # default end-of-document id is byte 0. NullTokenizer has what training needs: a size and an eod.
    "ByteLevelTokenizer": _Kind("NullTokenizer", None, "bytes"),
}


@dataclass(frozen=True)
class TokenizerChoice:
    """The tokenizer that a user requested. `model` is checked when it is built.

    `hf_special_tokens`: whether a Hugging Face tokenizer may add its own (such as a leading BOS) to
    each document, as Megatron lets it by default.
    """

    type: str
    model: Path | None = None
    hf_special_tokens: bool = True

    def training_arguments(self) -> list[str]:
        """The arguments with which Megatron's training builds the tokenizer with these ids."""
        arguments = ["--tokenizer-type", TOKENIZER_TYPES[self.type].megatron_type]
        if self.type == "ByteLevelTokenizer":
            arguments += ["--vocab-size", str(BYTE_VOCABULARY)]
        else:
            arguments += ["--tokenizer-model", str(self._model_path())]
        if self.type == "HuggingFaceTokenizer" and not self.hf_special_tokens:
            arguments += ["--tokenizer-hf-no-include-special-tokens"]
        return arguments

    def files(self) -> dict[str, str]:
        """Hashes of the files it is read from, to recognise the same tokenizer elsewhere; empty without a file."""
        return tokenizer_files(self._model_path())

    def check(self) -> None:
        """Raises UserError for a type that is unknown, and a model that is missing or not expected."""
        kind = TOKENIZER_TYPES.get(self.type)
        if kind is None:
            raise UserError(f"tokenizer type {self.type!r} is unknown; choose from {', '.join(TOKENIZER_TYPES)}")
        if kind.model is None and self.model is not None:
            raise UserError(f"{self.type} takes no --tokenizer-model, found {self.model}")
        if kind.model is not None and self.model is None:
            raise UserError(f"{self.type} needs --tokenizer-model: {kind.model}")
        if self.model is not None and not self.model.exists():
            raise UserError(f"tokenizer model {self.model} does not exist; {self.type} needs {kind.model}")
        if self.model is not None and self.type == "HuggingFaceTokenizer":
            check_as_it_is(self.model)

    def build(self) -> Any:
        """Megatron's tokenizer; raises UserError when the model is missing or unreadable."""
        self.check()
        from megatron_cod.data.megatron_api import build_tokenizer

        # Transformers warns about texts longer than a model's context; documents are cut in training.
        logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                # Megatron's logging asks for a distributed rank, which a tool does not have.
                warnings.filterwarnings("ignore", message="Could not determine rank")
                return build_tokenizer(self._megatron_arguments())
        except (ValueError, RuntimeError, OSError, TypeError) as error:
            raise self.unreadable(error) from error

    def transformers_tokenizer(self) -> Any:
        """What transformers reads from a Hugging Face folder; raises UserError when it cannot."""
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self._model_path())
        except Exception as error:  # transformers may raise anything for unreadable files
            raise self.unreadable(error) from None

    def unreadable(self, error: Exception) -> UserError:
        """The error to raise when a library does not accept the model."""
        reason = " ".join(str(error).split())[:300]
        return UserError(f"cannot read tokenizer model {self.model} as {self.type}: {reason}")

    def _model_path(self) -> Path | None:
        if self.type == "HuggingFaceTokenizer" and self.model is not None and self.model.is_file():
            return self.model.parent
        return self.model

    def _megatron_arguments(self) -> Namespace:
        path = self._model_path()
        return Namespace(
            tokenizer_type=TOKENIZER_TYPES[self.type].megatron_type,
            tokenizer_model=None if path is None else str(path),
            vocab_size=BYTE_VOCABULARY if self.type == "ByteLevelTokenizer" else None,
            pad_vocab_size=False,
            metadata_path=None,
            special_tokens=None,
            chat_template=None,
            vocab_file=None,
            merge_file=None,
            trust_remote_code=False,
            tokenizer_sentencepiece_legacy=False,
            tokenizer_sentencepiece_ignore_extra_whitespaces=True,
            tokenizer_hf_no_use_fast=False,
            tokenizer_hf_no_include_special_tokens=not self.hf_special_tokens,
            null_tokenizer_eod_id=None,
            null_tokenizer_pad_id=-1,
        )
