"""The tokenizers behind Megatron's own, so that a process that tokenizes need not import Megatron."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from megatron_cod.data.tokenizers import word_boundaries
from megatron_cod.data.tokenizers.choice import BYTE_VOCABULARY, TokenizerChoice
from megatron_cod.data.tokenizers.huggingface_library import load_huggingface
from megatron_cod.data.tokenizers.word_cache import Cutting, Library, one_after_the_other


def load_library(choice: TokenizerChoice) -> Library:
    """Raises UserError when the model is missing or unreadable."""
    choice.check()
    if choice.type == "ByteLevelTokenizer":
        return Library(BYTE_VOCABULARY, BYTE_VOCABULARY - 1, _bytes_of)
    return load_huggingface(choice) if choice.type == "HuggingFaceTokenizer" else _sentencepiece(choice)


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
    if (
        not (plain and is_bpe)
        or trainer.treat_whitespace_as_suffix
        or not word_boundaries.pieces_end_before_marks(pieces)
    ):
        return None
    head = word_boundaries.SPACE_MARK if spec.add_dummy_prefix else ""
    spec.add_dummy_prefix = False
    of_parts = SentencePieceProcessor(model_proto=model.SerializeToString())
    return Cutting(
        mark=word_boundaries.SPACE_MARK,
        head=head,
        one=of_parts.encode_as_ids,
        several=lambda texts: one_after_the_other(of_parts.encode(texts, num_threads=1)),
        begins=np.array([piece.piece.startswith(word_boundaries.SPACE_MARK) for piece in model.pieces]),
        parts=word_boundaries.parts_of_pieces(pieces, trainer.byte_fallback),
    )
