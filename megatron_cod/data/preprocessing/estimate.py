"""Estimate the size and time of a run from its first documents."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from megatron_cod.data.preprocessing.encode import Encoding, encode_part
from megatron_cod.data.preprocessing.job import PreprocessJob, check_job
from megatron_cod.data.preprocessing.token_runs import Commit
from megatron_cod.data.reading.parts import divide
from megatron_cod.data.tokenizers.document_encoder import DocumentEncoder
from megatron_cod.errors import UserError


@dataclass(frozen=True)
class Estimate:
    """An estimate from the first documents; exact when `share` (of the input read) is 1."""

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
    """Tokenize the first batches, up to about `documents` documents, into a folder that is removed again.

    Raises UserError as `preprocess` does, and when no document was found.
    """
    inputs, _ = check_job(job)
    encoder = DocumentEncoder(job.tokenizer, job.append_eod, job.whole_texts)
    parts = divide(inputs, job.split_on)
    start = time.monotonic()
    commits: list[Commit] = []
    with TemporaryDirectory() as folder:
        what = Encoding(
            Path(folder), inputs, parts, job.json_keys, job.split_on, encoder, job.skip_bad_lines, limit=documents
        )
        for number in range(len(parts)):
            commits += encode_part(what, number, lambda *_: None)
            if sum(commit.documents for commit in commits) >= documents:
                break
    seen = sum(commit.documents for commit in commits)
    if not seen:
        raise UserError(f"no documents in {len(inputs)} input file(s): all are empty")
    position = sum(commit.input_bytes for commit in commits)
    share = min(position / sum(source.size for source in inputs), 1.0)
    tokens = sum(commit.tokens for commit in commits)
    text_bytes = sum(commit.text_bytes for commit in commits)
    return Estimate(seen, tokens, text_bytes, share, np.dtype(encoder.dtype).name, time.monotonic() - start)
