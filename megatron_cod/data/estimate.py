"""Guess the size and time of a run from its first documents."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from megatron_cod.data.documents import read_batches
from megatron_cod.data.encode import encode_all
from megatron_cod.data.job import PreprocessJob, check_job
from megatron_cod.data.tokenizers import DocumentEncoder


@dataclass(frozen=True)
class Estimate:
    """What the first documents say of the whole; exact when `share` (of the input read) is 1."""

    documents: int
    tokens: int
    text_bytes: int
    share: float
    dtype: str
    seconds: float

    @property
    def total_tokens(self) -> int:
        return round(self.tokens / self.share)

    @property
    def total_bin_bytes(self) -> int:
        return self.total_tokens * int(np.dtype(self.dtype).itemsize)


def estimate(job: PreprocessJob, documents: int = 1000) -> Estimate:
    """Tokenize the first batches, up to about `documents` documents, and write nothing.

    Raises ValueError as `preprocess` does, and when no document was found.
    """
    start = time.monotonic()
    inputs, _ = check_job(job)
    encoder = DocumentEncoder(job.tokenizer, job.append_eod)
    seen = tokens = text_bytes = position = 0
    encoded = encode_all(read_batches(inputs, job.split_on), job.json_keys, encoder, job.skip_bad_lines, 1)
    for batch in encoded:
        column = batch.columns[0]
        seen += sum(length > 0 for length in column.lengths)
        tokens += sum(column.lengths)
        text_bytes += sum(size for size, length in zip(column.text_bytes, column.lengths, strict=True) if length)
        position = batch.position
        if seen >= documents:
            break
    if not seen:
        raise ValueError(f"no documents in {len(inputs)} input file(s): all are empty")
    share = position / sum(source.size for source in inputs)
    return Estimate(seen, tokens, text_bytes, share, np.dtype(encoder.dtype).name, time.monotonic() - start)
