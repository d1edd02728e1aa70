"""Text -> Megatron datasets: tokenize in parts, decide where documents go, merge, publish."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from megatron_cod.data.datasets.content import index_digest, tokens_digest
from megatron_cod.data.datasets.index_file import write_index
from megatron_cod.data.datasets.manifest import DatasetRecord, dataset_files, describes, read_record, write_record
from megatron_cod.data.preprocessing.assemble import Assembly, Target, flush_to_disk, prepare, write_piece
from megatron_cod.data.preprocessing.encode import Encoding, encode_part
from megatron_cod.data.preprocessing.job import PreprocessJob, check_job, identity_of, output_name, what_differs
from megatron_cod.data.preprocessing.plan import Plan, make_plan
from megatron_cod.data.preprocessing.progress import PreprocessingProgress
from megatron_cod.data.preprocessing.splits import DocumentSplitter
from megatron_cod.data.preprocessing.token_runs import Run, all_runs
from megatron_cod.data.preprocessing.work_folder import WorkFolder
from megatron_cod.data.preprocessing.worker_pool import run_tasks
from megatron_cod.data.reading.inputs import InputFile
from megatron_cod.data.reading.parts import divide, part_bytes, where
from megatron_cod.data.reading.skipped import MOST_EXAMPLES
from megatron_cod.data.tokenizers.document_encoder import DocumentEncoder
from megatron_cod.data.tokenizers.files import main_file
from megatron_cod.errors import UserError


@dataclass(frozen=True)
class PreprocessResult:
    """What was done. `datasets` maps a dataset's prefix to its record; `bad` are the messages of the first bad
    documents omitted, `bad_count` is how many there were; `seconds` is without start-up, and 0 when everything was
    there already."""

    datasets: dict[str, DatasetRecord]
    bad: list[str]
    bad_count: int
    duplicates: int
    seconds: float

    @property
    def empty(self) -> dict[str, int]:
        """Key -> how many documents its datasets omit, since they have no text under it."""
        return {record.json_key: record.empty for record in self.datasets.values()}


def preprocess(job: PreprocessJob) -> PreprocessResult:
    """Write the datasets of `job`, all or none.

    The result depends on the inputs and options alone, to the byte, for any number of workers and however often
    the run was broken off: what is finished is kept in PREFIX.partial, and the same job resumes from there. Datasets
    that the same job has made already are left as they are. Raises UserError for bad options, inputs or documents,
    OSError when a file cannot be used.
    """
    inputs, splitter = check_job(job)
    job.tokenizer.check()
    folder = WorkFolder(job.output_prefix)
    if folder.exists():
        folder.lock()
    try:
        interrupted = folder.is_held and folder.finish_publishing()
        encoder = DocumentEncoder(job.tokenizer, job.append_eod, job.whole_texts)
        identity = identity_of(job, inputs, encoder)
        made = _made_already(job, identity, splitter)
        if made is not None and (interrupted or not job.overwrite):
            return made
        folder.lock()
        return _Run(job, inputs, splitter, encoder, identity, folder).result()
    finally:
        if folder.is_held and not folder.has_parts():
            folder.discard()
        folder.unlock()


def _prefixes(job: PreprocessJob, splitter: DocumentSplitter | None) -> list[list[str]]:
    """The prefixes of the datasets [splits][keys]."""
    names = splitter.names if splitter else (None,)
    return [[output_name(job.output_prefix, name, key) for key in job.json_keys] for name in names]


def _made_already(
    job: PreprocessJob, identity: Mapping[str, Any], splitter: DocumentSplitter | None
) -> PreprocessResult | None:
    """The result of the same job, when its datasets are all there. Raises UserError for files of another job, unless
    they are to be overwritten."""
    prefixes = [prefix for row in _prefixes(job, splitter) for prefix in row]
    existing = [path for prefix in prefixes for path in dataset_files(prefix) if path.exists()]
    if not existing:
        return None
    whole = len(existing) == 3 * len(prefixes)
    records = {prefix: record for prefix in prefixes if whole and (record := read_record(prefix)) is not None}
    others = [difference for record in records.values() if (difference := what_differs(identity, vars(record)))]
    others += ["contents than its manifest describes" for prefix, one in records.items() if not describes(one, prefix)]
    if len(records) == len(prefixes) and not others:
        first = records[prefixes[0]]
        return PreprocessResult(records, [], first.bad, first.duplicates, 0.0)
    if not job.overwrite:
        names = ", ".join(str(path) for path in existing)
        made_with = f", made with other {others[0]}" if others else ""
        raise UserError(f"output exists already: {names}{made_with}; choose another prefix or give --overwrite")
    return None


class _Run:
    def __init__(
        self,
        job: PreprocessJob,
        inputs: Sequence[InputFile],
        splitter: DocumentSplitter | None,
        encoder: DocumentEncoder,
        identity: Mapping[str, Any],
        folder: WorkFolder,
    ) -> None:
        self._job, self._inputs, self._splitter, self._encoder = job, inputs, splitter, encoder
        self._identity = identity
        self._folder = folder
        self._item = encoder.dtype().itemsize
        self._prefixes = _prefixes(job, splitter)

    def result(self) -> PreprocessResult:
        start = time.monotonic()
        job = {
            **self._identity,
            "options": self._job.options_of_tokens(),
            "part_bytes": part_bytes(self._inputs),
        }
        if self._folder.begin(job, self._job.overwrite):
            print(f"resuming with the finished parts in {self._folder.path}", file=sys.stderr)
        runs = self._tokenize()
        plan = make_plan(
            runs,
            self._folder.plan,
            self._splitter,
            len(self._job.json_keys),
            self._item,
            self._job.max_documents,
            self._job.deduplicate,
            self._job.shuffle_seed,
        )
        self._refuse_empty(plan)
        self._merge(plan)
        datasets = self._finish(plan)
        examples = [example for run in runs for example in run.commit.examples][:MOST_EXAMPLES]
        bad = [f"{where(self._inputs[file], begin, line)}: {message}" for file, begin, line, message in examples]
        self._folder.publish([dataset_files(prefix) for prefix in datasets])
        first = next(iter(datasets.values()))
        return PreprocessResult(datasets, bad, first.bad, first.duplicates, time.monotonic() - start)

    def _tokenize(self) -> list[Run]:
        """The runs of all parts that are needed."""
        job = self._job
        parts = divide(self._inputs, job.split_on)
        what = Encoding(
            folder=self._folder.runs,
            inputs=self._inputs,
            parts=parts,
            keys=job.json_keys,
            split_on=job.split_on,
            encoder=self._encoder,
            skip_bad=job.skip_bad_lines,
            limit=job.max_documents,
            seed=job.shuffle_seed,
        )
        last = {run.part: run.commit.input_bytes for run in all_runs(self._folder.runs, len(parts))}
        progress = PreprocessingProgress(sum(source.size for source in self._inputs), sum(last.values()))
        documents = needed = 0
        try:
            tasks = run_tasks(
                partial(encode_part, what), range(len(parts)), job.workers, lambda sums: progress.update(*sums)
            )
            with closing(tasks):
                for commits in tasks:
                    needed += 1
                    documents += sum(commit.documents for commit in commits)
                    if job.max_documents is not None and documents >= job.max_documents:
                        break
        finally:
            progress.close()
        return list(all_runs(self._folder.runs, needed))

    def _refuse_empty(self, plan: Plan) -> None:
        """Raises UserError when no dataset gets a document, or one of them does not and that was not allowed."""
        empty, bad = self._left_out(plan)
        count = int(plan.documents.sum())
        if not count:
            raise UserError(
                f"no documents in {len(self._inputs)} input file(s): {empty} empty, {bad} bad; nothing written"
            )
        sums = plan.documents.sum(axis=0)
        without = [
            prefix for row, counts in zip(self._prefixes, sums, strict=True)
            for prefix, each in zip(row, counts, strict=True) if not each
        ]  # fmt: skip
        if without and not self._job.allow_empty:
            raise UserError(
                f"{count} document(s) are too few: none for {', '.join(without)}; give more documents or another split "
                "(--holdout-every is exact for few documents), or allow it with --allow-empty; nothing written"
            )

    def _left_out(self, plan: Plan) -> tuple[int, int]:
        """Documents without text under any key, and bad ones."""
        return sum(run.commit.empty for run in plan.runs), sum(run.commit.bad for run in plan.runs)

    def _merge(self, plan: Plan) -> None:
        targets = [
            [Target(self._out(prefix, "bin"), self._out(prefix, "lengths")) for prefix in row] for row in self._prefixes
        ]
        prepare(targets)
        tasks = run_tasks(
            partial(write_piece, Assembly(plan, targets, self._item)),
            range(len(plan.documents)),
            self._job.workers,
            lambda _: None,
        )
        with closing(tasks):
            for _ in tasks:
                pass

    def _out(self, prefix: str, ending: str) -> Path:
        return self._folder.out / f"{Path(prefix).name}.{ending}"

    def _finish(self, plan: Plan) -> dict[str, DatasetRecord]:
        """Complete the files of all datasets; their records by prefix."""
        records: dict[str, DatasetRecord] = {}
        for split, row in enumerate(self._prefixes):
            for key, prefix in enumerate(row):
                sums = (plan.documents, plan.tokens, plan.text_bytes)
                documents, tokens, text_bytes = (int(kind[:, split, key].sum()) for kind in sums)
                record = self._record(plan, split, key, documents, tokens, text_bytes)
                data, index = self._out(prefix, "bin"), self._out(prefix, "idx")
                assert data.stat().st_size == tokens * self._item
                write_index(index, self._encoder.dtype, self._out(prefix, "lengths"), documents)
                record = records[prefix] = replace(
                    record, index_digest=index_digest(data.with_suffix("")), tokens_digest=tokens_digest(data)
                )
                write_record(self._out(prefix, "json"), record)
                for path in (data, index, self._out(prefix, "json")):
                    flush_to_disk(path)
        return records

    def _record(self, plan: Plan, split: int, key: int, documents: int, tokens: int, text_bytes: int) -> DatasetRecord:
        job = self._job
        empty, bad = self._left_out(plan)
        empty += plan.taken - int(plan.documents[:, :, key].sum())
        return DatasetRecord(
            **self._identity,
            tokenizer_model=None if job.tokenizer.model is None else str(job.tokenizer.model),
            model_sha256=main_file(self._identity["tokenizer_files"]),
            append_eod=job.append_eod,
            training_arguments=job.tokenizer.training_arguments(),
            split=self._splitter.names[split] if self._splitter else None,
            json_key=job.json_keys[key],
            documents=documents,
            tokens=tokens,
            text_bytes=text_bytes,
            empty=empty,
            bad=bad,
            dtype=np.dtype(self._encoder.dtype).name,
            duplicates=plan.duplicates,
        )
