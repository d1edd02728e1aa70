"""Whether the ids of a dataset mean to a model what they meant when it was made: one check for training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from megatron_cod.data.datasets.manifest import DatasetRecord
from megatron_cod.data.tokenizers.choice import TOKENIZER_TYPES
from megatron_cod.data.tokenizers.files import SINGLE, WHOLE, differing, main_file

NUMBERS = "NullTokenizer"


@dataclass(frozen=True)
class TrainedWith:
    """The tokenizer that a run is given: Megatron's type, `--tokenizer-model`, and what is known of it.

    `files` are those of `tokenizer_files`, empty when the model is no local file; `vocab_size` is asked of a
    `NullTokenizer` only; `eod` is the id that ends documents, None when it is not known.
    """

    type: str
    model: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    vocab_size: int | None = None
    eod: int | None = None

    @property
    def name(self) -> str:
        """As messages have it."""
        return f"{self.type} {self.model}" if self.model else self.type


def changed_files(record: DatasetRecord, files: Mapping[str, str]) -> list[str]:
    """Names of the tokenizer's files that are not those the dataset was made with; none when either side is unknown."""
    if not files:
        return []
    if record.tokenizer_files:
        return differing(record.tokenizer_files, files)
    # Written by an earlier version, which knew of one file.
    if record.model_sha256 in (None, main_file(files)):
        return []
    return [WHOLE if WHOLE in files else SINGLE]


def difference(record: DatasetRecord, given: TrainedWith) -> str | None:
    """In what the tokenizer of a dataset is not the one given, as the rest of a sentence about the dataset; None where
    they agree as far as this is known."""
    if given.type == NUMBERS:
        return _of_numbers(record, given)
    made, changed = _made_with(record), changed_files(record, given.files)
    kinds = [TOKENIZER_TYPES.get(name) for name in (record.tokenizer_type, given.type)]
    if len({kind.family for kind in kinds if kind is not None}) > 1:
        return f"was made with {made}, but the model has {given.name}: the same ids mean other text"
    model, before = main_file(given.files), record.model_sha256
    if changed and model and before and model != before:
        return (
            f"was made with {made} (sha256 {before[:12]}), but --tokenizer-model {given.model} is another one (sha256 "
            f"{model[:12]}): the same ids mean other text"
        )
    if changed:
        return (
            f"was made with {made}, but --tokenizer-model {given.model} has another {' and '.join(changed)}: the same ids "
            "may mean other text"
        )
    if None not in (record.eod_id, given.eod) and record.eod_id != given.eod:
        return f"was made with {made} and {record.eod_id} as end of document, but that of {given.name} is {given.eod}"
    return None


def _of_numbers(record: DatasetRecord, given: TrainedWith) -> str | None:
    """A `NullTokenizer` has no text: ids are the dataset's, if their number and the end of document agree."""
    end = record.eod_id if record.append_eod else None
    if given.vocab_size in (None, record.vocab_size) and (end is None or given.eod in (None, end)):
        return None
    asked, found = f"{_made_with(record)} of {record.vocab_size} ids", f"{NUMBERS} has {given.vocab_size}"
    flags = f"--vocab-size {record.vocab_size}"
    if end is not None:
        asked, found = f"{asked}, of which {end} ends a document", f"{found}, of which {given.eod} does"
        flags += f" --null-tokenizer-eod-id {end}"
    return f"was made with {asked}, but {found}; for ids alone give {flags}"


def _made_with(record: DatasetRecord) -> str:
    return record.tokenizer_type if record.tokenizer_model is None else f"the tokenizer model {record.tokenizer_model}"
