"""Text files -> Megatron datasets."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_cod.data.documents import read_batches
from megatron_cod.data.encode import EncodedBatch, encode_all
from megatron_cod.data.inputs import InputFile
from megatron_cod.data.job import PreprocessJob, check_job, output_name
from megatron_cod.data.progress import Progress
from megatron_cod.data.record import DatasetRecord
from megatron_cod.data.splits import DocumentSplitter
from megatron_cod.data.tokenizers import DocumentEncoder
from megatron_cod.data.writer import DatasetWriter, publish, refuse_overwrite


@dataclass(frozen=True)
class PreprocessResult:
    """What was done. `datasets` maps a dataset's prefix to its record; `bad` are the messages of the
    first bad lines left out, `bad_count` is how many there were; `seconds` is without start-up."""

    datasets: dict[str, DatasetRecord]
    empty: int
    bad: list[str]
    bad_count: int
    seconds: float


def preprocess(job: PreprocessJob) -> PreprocessResult:
    """Write the datasets of `job`, all or none: an interrupted or failed run leaves no finished files.

    The result depends on the inputs and options alone, to the byte, whatever the number of workers.
    Raises ValueError for bad options, inputs or documents, OSError when a file cannot be used.
    """
    inputs, splitter = check_job(job)
    writers: dict[tuple[str | None, str], DatasetWriter] = {}
    prefixes = {
        (name, key): output_name(job.output_prefix, name, key) for name in _names(splitter) for key in job.json_keys
    }
    if not job.overwrite:
        refuse_overwrite(list(prefixes.values()))
    encoder = DocumentEncoder(job.tokenizer, job.append_eod)
    start = time.monotonic()
    Path(job.output_prefix).parent.mkdir(parents=True, exist_ok=True)
    progress = Progress(sum(source.size for source in inputs))
    try:
        for place, prefix in prefixes.items():
            writers[place] = DatasetWriter(prefix, encoder.dtype)
        run = _Run(job, writers, splitter)
        batches = read_batches(inputs, job.split_on)
        encoded = encode_all(batches, job.json_keys, encoder, job.skip_bad_lines, job.workers)
        for batch in encoded:
            done = run.write(batch)
            progress.update(batch.position, run.documents, run.tokens, run.text_bytes)
            if done:
                break
        encoded.close()
        run.refuse_empty(inputs)
        records = {place: _record(job, encoder, writers[place], place, inputs, run) for place in prefixes}
        for place, writer in writers.items():
            writer.finish(records[place])
        publish(list(writers.values()))
    except BaseException:
        for writer in writers.values():
            writer.discard()
        raise
    finally:
        progress.close()
    datasets = {prefixes[place]: record for place, record in records.items()}
    return PreprocessResult(datasets, run.empty, run.bad, run.bad_count, time.monotonic() - start)


class _Run:
    """Deals encoded documents out to the writers and counts."""

    def __init__(
        self,
        job: PreprocessJob,
        writers: dict[tuple[str | None, str], DatasetWriter],
        splitter: DocumentSplitter | None,
    ) -> None:
        self._job, self._writers, self._splitter = job, writers, splitter
        self.documents = self.tokens = self.text_bytes = self.empty = self.bad_count = 0
        self.bad: list[str] = []

    def write(self, batch: EncodedBatch) -> bool:
        """Write a batch; True when enough documents are written."""
        starts = [0] * len(batch.columns)
        for place in range(batch.count):
            if self.documents == self._job.max_documents:
                return True
            if place in batch.bad:
                self.bad_count += 1
                if len(self.bad) < 5:
                    self.bad.append(batch.bad[place])
                continue
            if not any(column.lengths[place] for column in batch.columns):
                self.empty += 1
                continue
            # One record goes to one split, whatever the number of its keys.
            name = self._splitter.next() if self._splitter else None
            self.documents += 1
            for number, (key, column) in enumerate(zip(self._job.json_keys, batch.columns, strict=True)):
                length = column.lengths[place]
                if length:
                    ids = column.tokens[starts[number] : starts[number] + length]
                    self._writers[name, key].add(ids, column.text_bytes[place])
                    self.tokens += length
                    self.text_bytes += column.text_bytes[place]
                starts[number] += length
        return self.documents == self._job.max_documents

    def refuse_empty(self, inputs: Sequence[InputFile]) -> None:
        """Raises ValueError when a dataset got no document."""
        if not self.documents:
            raise ValueError(
                f"no documents in {len(inputs)} input file(s): {self.empty} empty, {self.bad_count} bad; "
                "nothing written"
            )
        without = [writer.prefix for writer in self._writers.values() if not writer.documents]
        if without:
            raise ValueError(
                f"{self.documents} document(s) are too few: none for {', '.join(without)}; "
                "give more documents or another split; nothing written"
            )


def _names(splitter: DocumentSplitter | None) -> Sequence[str | None]:
    return splitter.names if splitter else (None,)


def _record(
    job: PreprocessJob,
    encoder: DocumentEncoder,
    writer: DatasetWriter,
    place: tuple[str | None, str],
    inputs: Sequence[InputFile],
    run: _Run,
) -> DatasetRecord:
    split, key = place
    return DatasetRecord(
        tokenizer_type=job.tokenizer.type,
        tokenizer_model=None if job.tokenizer.model is None else str(job.tokenizer.model),
        model_sha256=job.tokenizer.fingerprint(),
        vocab_size=encoder.vocab_size,
        eod_id=encoder.eod,
        append_eod=job.append_eod,
        training_arguments=job.tokenizer.training_arguments(),
        split=split,
        json_key=key,
        documents=writer.documents,
        tokens=writer.tokens,
        text_bytes=writer.text_bytes,
        empty=run.empty,
        bad=run.bad_count,
        dtype=np.dtype(encoder.dtype).name,
        inputs=[str(source.path) for source in inputs],
    )
