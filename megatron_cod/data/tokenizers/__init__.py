"""Tokenizers: the choice, the files, how documents become ids, and how a SentencePiece model is trained."""

from typing import Any

from megatron_cod.former_paths import name_in_former_module


def __getattr__(name: str) -> Any:
    return name_in_former_module(__name__, name)
