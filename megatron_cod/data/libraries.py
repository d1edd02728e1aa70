"""The tokenizers behind Megatron's own, so that a process that tokenizes need not import Megatron."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from megatron_cod.data import cuts
from megatron_cod.data.tokenizers import BYTE_VOCABULARY, TokenizerChoice
from megatron_cod.data.word_cache import Cutting, Ids


@dataclass(frozen=True)
class Library:
    """A tokenizer as Megatron's training sees it: ids are below `vocab_size`, `eod` is None where there is none,
    `whole` gives the ids of a text. `cutting` is None where the words of a text do not give its ids."""

    vocab_size: int
    eod: int | None
    whole: Callable[[str], Ids]
    cutting: Cutting | None = None


def load_library(choice: TokenizerChoice) -> Library:
    """Raises ValueError when the model is missing or unreadable."""
    choice.check()
    if choice.type == "ByteLevelTokenizer":
        return Library(BYTE_VOCABULARY, BYTE_VOCABULARY - 1, _bytes_of)
    return _huggingface(choice) if choice.type == "HuggingFaceTokenizer" else _sentencepiece(choice)


def _bytes_of(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)


def _sentencepiece(choice: TokenizerChoice) -> Library:
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    try:
        content = Path(str(choice.model)).read_bytes()
        processor = SentencePieceProcessor(model_proto=content)
        model = sentencepiece_model_pb2.ModelProto.FromString(content)
    except (OSError, RuntimeError, ValueError) as error:
        raise choice.unreadable(error) from error
    eod = processor.eos_id()
    return Library(
        processor.get_piece_size(), eod if eod >= 0 else None, processor.encode_as_ids, _cutting_of_pieces(model)
    )


def _cutting_of_pieces(model: Any) -> Cutting | None:
    """For BPE without normalisation, as Llama's: there a text is known as the tokenizer sees it, without asking it."""
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    spec, trainer = model.normalizer_spec, model.trainer_spec
    mergeable = (kinds.NORMAL, kinds.USER_DEFINED, kinds.UNUSED)
    pieces = [piece.piece for piece in model.pieces if piece.type in mergeable]
    plain = not spec.precompiled_charsmap and not spec.remove_extra_whitespaces and spec.escape_whitespaces
    is_bpe = trainer.model_type == trainer.BPE
    if not (plain and is_bpe) or trainer.treat_whitespace_as_suffix or not cuts.pieces_end_before_marks(pieces):
        return None
    head = cuts.SPACE_MARK if spec.add_dummy_prefix else ""
    spec.add_dummy_prefix = False
    of_parts = SentencePieceProcessor(model_proto=model.SerializeToString())
    return Cutting(
        mark=cuts.SPACE_MARK,
        head=head,
        one=of_parts.encode_as_ids,
        several=lambda texts: of_parts.encode(texts, num_threads=1),
        begins=np.array([piece.piece.startswith(cuts.SPACE_MARK) for piece in model.pieces]),
        parts=cuts.parts_of_pieces(pieces, trainer.byte_fallback),
    )


@dataclass(frozen=True)
class _Description:
    """What Megatron makes of a Hugging Face folder: `definition` is the content of a tokenizer.json, None for a
    tokenizer that has none because it is written in Python."""

    vocab_size: int
    eod: int | None
    definition: str | None


def _describe(choice: TokenizerChoice) -> _Description:
    tokenizer = choice.build()
    inner = tokenizer._tokenizer.tokenizer
    backend = getattr(inner, "backend_tokenizer", None)
    plain = None if backend is None or getattr(inner, "split_special_tokens", False) else backend.to_str()
    return _Description(int(tokenizer.vocab_size), tokenizer.eod, plain)


@lru_cache(maxsize=8)
def _described(choice: TokenizerChoice, _fingerprints: tuple[int, ...]) -> _Description:
    """In a process of its own: Megatron and transformers take 800 MB, and tokenizing needs neither."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as process:
        return process.submit(_describe, choice).result()


def _huggingface(choice: TokenizerChoice) -> Library:
    assert choice.model is not None
    folder = choice.model if choice.model.is_dir() else choice.model.parent
    about = _described(choice, tuple(sorted(path.stat().st_mtime_ns for path in folder.glob("*.json"))))
    if about.definition is None:
        return Library(about.vocab_size, about.eod, choice.build().tokenize)
    # Processes work beside each other already; tokenizers warns of a fork once it has started threads.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    special = choice.hf_special_tokens
    tokenizer = _from_definition(about.definition)
    cutting = _cutting_of_definition(json.loads(about.definition), tokenizer if special else None)
    return Library(
        about.vocab_size, about.eod, lambda text: tokenizer.encode(text, add_special_tokens=special).ids, cutting
    )


def _from_definition(definition: str) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(definition)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _cutting_of_definition(definition: dict[str, Any], around: Any) -> Cutting | None:
    """around: a tokenizer to ask for what it puts around a text."""
    added = [token["content"] for token in definition["added_tokens"]]
    if any(re.search(r"\s", content) for content in added):
        return None
    # An added token, such as <s>, is found before all else.
    left_whole = [re.escape(content) for content in added]
    mark, head, begin = " ", "", cuts.BYTE_LEVEL_SPACE
    parts: re.Pattern[str] | None = cuts.PARTS_OF_BYTE_LEVEL
    if not cuts.is_safe_byte_level(definition):
        marked = cuts.marks_spaces(definition)
        if marked is None:
            return None
        mark, head, begin = cuts.SPACE_MARK, marked, cuts.SPACE_MARK
        if definition["pre_tokenizer"] is not None:
            left_whole.append(r"\A ")  # Metaspace puts no mark before a text that begins with one
        parts = cuts.parts_of_pieces(
            cuts.merged(definition["model"]["merges"]), bool(definition["model"]["byte_fallback"])
        )
        definition = {**definition, "normalizer": None, "pre_tokenizer": None}
    of_parts = _from_definition(json.dumps(definition))
    before, after = _around(around, of_parts) if around is not None else ([], [])
    vocabulary = of_parts.get_vocab(with_added_tokens=True)
    begins = np.zeros(max(vocabulary.values()) + 1, dtype=bool)
    begins[[number for piece, number in vocabulary.items() if piece.startswith(begin)]] = True
    return Cutting(
        mark=mark,
        head=head,
        one=lambda part: of_parts.encode(part, add_special_tokens=False).ids,
        several=lambda texts: [ids.ids for ids in of_parts.encode_batch_fast(texts, add_special_tokens=False)],
        begins=begins,
        parts=parts,
        whole=re.compile("|".join(left_whole)) if left_whole else None,
        before=before,
        after=after,
    )


def _around(tokenizer: Any, of_parts: Any) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer puts before and after the ids of a text."""
    with_them = tokenizer.encode("a", add_special_tokens=True).ids
    without = tokenizer.encode("a", add_special_tokens=False).ids
    for start in range(len(with_them) - len(without) + 1):
        if with_them[start : start + len(without)] == without:
            return with_them[:start], with_them[start + len(without) :]
    raise AssertionError(f"special tokens within a text: {with_them} {without}")
