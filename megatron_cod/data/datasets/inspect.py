"""Prints what a dataset contains: lengths of documents, and samples."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_cod.data.datasets.index_file import Index, read_index
from megatron_cod.data.datasets.manifest import DatasetRecord
from megatron_cod.data.datasets.tokenizer_match import changed_files
from megatron_cod.data.tokenizers.choice import BYTE_VOCABULARY, TokenizerChoice
from megatron_cod.data.tokenizers.files import SINGLE

Decode = Callable[[Sequence[int]], str]
_BAR = 40
_REMAKE = "make the dataset again with megatron-cod preprocess"


@dataclass(frozen=True)
class Sample:
    """Document `number` (from 0) of a dataset: its first ids, and how many it has."""

    number: int
    ids: list[int]
    length: int


def decoder(record: DatasetRecord) -> tuple[Decode | None, str]:
    """Ids -> text as the dataset was made; or None, and why: its model is not here any more, was replaced, or is not
    readable."""
    if record.tokenizer_type == "ByteLevelTokenizer":
        return _bytes_to_text, ""
    model = Path(str(record.tokenizer_model))
    if record.tokenizer_model is None or not model.exists():
        return None, f"{record.tokenizer_model} is not here"
    choice = TokenizerChoice(record.tokenizer_type, model)
    changed = changed_files(record, choice.files())
    if changed:
        names = "" if changed == [SINGLE] else f" in {' and '.join(changed)}"
        return None, f"{model} is not what the dataset was made with, but changed{names}"
    try:
        return (_of_folder if choice.type == "HuggingFaceTokenizer" else _of_pieces)(choice), ""
    except ValueError as error:
        return None, str(error)


def _of_folder(choice: TokenizerChoice) -> Decode:
    tokenizer = choice.transformers_tokenizer()
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _of_pieces(choice: TokenizerChoice) -> Decode:
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_file=str(choice.model))
    except (RuntimeError, OSError) as error:
        raise choice.unreadable(error) from None
    # Control pieces, such as the end of a document, decode to nothing: they are shown by name.
    control = {number for number in range(processor.get_piece_size()) if processor.is_control(number)}

    def decode(ids: Sequence[int]) -> str:
        texts: list[str] = []
        held: list[int] = []
        for number in ids:
            if number in control:
                texts += [processor.decode(held), processor.id_to_piece(number)]
                held = []
            else:
                held.append(number)
        return "".join([*texts, processor.decode(held)])

    return decode


def _bytes_to_text(ids: Sequence[int]) -> str:
    end = BYTE_VOCABULARY - 1
    parts: list[bytearray] = [bytearray()]
    for number in ids:
        if number == end:
            parts.append(bytearray())
        else:
            parts[-1].append(number)
    return "<end>".join(part.decode("utf-8", errors="replace") for part in parts)


def open_index(prefix: str) -> Index:
    """Raises UserError when the dataset's index is damaged."""
    return read_index(Path(f"{prefix}.idx"), _REMAKE)


def some_documents(prefix: str, index: Index, count: int, seed: int, most_ids: int) -> list[Sample]:
    """`count` documents chosen by `seed`, in order, the first `most_ids` ids of each. Documents are one sequence each."""
    numbers = sorted(random.Random(seed).sample(range(index.sequences), min(count, index.sequences)))
    data = np.memmap(f"{prefix}.bin", index.dtype, "r")
    item = np.dtype(index.dtype).itemsize
    samples = []
    for number in numbers:
        begin, length = int(index.begins[number]) // item, int(index.lengths[number])
        samples.append(Sample(number, data[begin : begin + min(length, most_ids)].tolist(), length))
    return samples


def length_histogram(lengths: np.ndarray) -> Iterator[str]:
    """Lines of a histogram over lengths [documents], each twice as wide as the one before, with the share of tokens."""
    if not len(lengths):
        return
    exponents = np.frexp(lengths.astype(np.float64))[1]  # 2 ** (e - 1) <= length < 2 ** e
    documents = np.bincount(exponents)
    tokens = np.bincount(exponents, lengths)
    for exponent in range(int(exponents.min()), len(documents)):
        low, high = (1 << exponent >> 1), max((1 << exponent) - 1, 0)
        bar = "#" * round(_BAR * documents[exponent] / documents.max())
        share = tokens[exponent] / max(tokens.sum(), 1)
        yield f"{low:>11,} to {high:>11,} tokens  {documents[exponent]:>12,} documents  {share:>6.1%} of tokens  {bar}"


def length_summary(lengths: np.ndarray) -> str:
    """Shortest, quantiles, mean and longest of lengths [documents]."""
    low, median, high = np.quantile(lengths, [0.05, 0.5, 0.95])
    return (
        f"shortest {lengths.min():,}, 5% below {low:,.0f}, median {median:,.0f}, mean {lengths.mean():,.1f}, "
        f"5% above {high:,.0f}, longest {lengths.max():,}"
    )
