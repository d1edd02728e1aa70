"""The job of `megatron-cod preprocess`: its options, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_cod.data.preprocessing.splits import DocumentSplitter, make_splitter
from megatron_cod.data.reading.documents import SPLIT_ON
from megatron_cod.data.reading.inputs import InputFile, find_inputs
from megatron_cod.data.tokenizers.choice import TokenizerChoice
from megatron_cod.data.tokenizers.document_encoder import DocumentEncoder
from megatron_cod.errors import UserError

_TEXT_KEY = "text"
# On these a dataset depends beside its inputs and tokenizer; the first ones already when the text is tokenized.
_OF_TOKENS = ("json_keys", "split_on", "append_eod", "shuffle_seed", "max_documents", "whole_texts")
_OF_MERGE = ("split", "holdout_every", "deduplicate", "skip_bad_lines")


@dataclass(frozen=True)
class PreprocessJob:
    """What to do; the fields are the options of `megatron-cod preprocess`, explained there."""

    inputs: Sequence[str]
    output_prefix: str
    tokenizer: TokenizerChoice
    json_keys: Sequence[str] = (_TEXT_KEY,)
    input_format: str = "auto"
    split_on: str = "blank-line"
    append_eod: bool = False
    split: str | None = None
    holdout_every: int | None = None
    shuffle_seed: int | None = None
    allow_empty: bool = False
    deduplicate: bool = False
    max_documents: int | None = None
    skip_bad_lines: bool = False
    whole_texts: bool = False
    workers: int = 1
    overwrite: bool = False

    def options(self) -> dict[str, Any]:
        """The options that a dataset depends on, as JSON holds them."""
        return self._as_json((*_OF_TOKENS, *_OF_MERGE))

    def options_of_tokens(self) -> dict[str, Any]:
        """Those of them that must not change between a run and its continuation."""
        return self._as_json(_OF_TOKENS)

    def _as_json(self, names: Sequence[str]) -> dict[str, Any]:
        values = ((name, getattr(self, name)) for name in names)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}


def check_job(job: PreprocessJob) -> tuple[list[InputFile], DocumentSplitter | None]:
    """The input files and the splitter of a job; raises UserError for options that make no sense."""
    for name in ("workers", "max_documents"):
        value = getattr(job, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be 1 or more, found {value}")
    if job.split_on not in SPLIT_ON:
        raise UserError(f"--split-on {job.split_on!r} is unknown; choose from {', '.join(SPLIT_ON)}")
    if len(set(job.json_keys)) != len(job.json_keys) or not job.json_keys:
        raise UserError(f"--json-keys must be different names, found {' '.join(job.json_keys) or 'none'}")
    splitter = make_splitter(job.split, job.holdout_every)
    inputs = find_inputs(job.inputs, job.input_format)
    if list(job.json_keys) != [_TEXT_KEY] and any(source.format == "text" for source in inputs):
        raise UserError("--json-keys is for JSON lines and tables, and one of the inputs is plain text")
    return inputs, splitter


def _described(inputs: Sequence[InputFile]) -> list[dict[str, Any]]:
    return [
        {"path": str(source.path), "size": source.size, "mtime_ns": source.mtime_ns, "format": source.format}
        for source in inputs
    ]


def identity_of(job: PreprocessJob, inputs: Sequence[InputFile], encoder: DocumentEncoder) -> dict[str, Any]:
    """All that a dataset depends on, as JSON holds it, by the names of `DatasetRecord`."""
    return {
        "inputs": _described(inputs),
        "options": job.options(),
        "tokenizer_type": job.tokenizer.type,
        "tokenizer_files": job.tokenizer.files(),
        "hf_special_tokens": job.tokenizer.hf_special_tokens,
        "eod_id": encoder.eod,
        "vocab_size": encoder.vocab_size,
    }


def what_differs(asked: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """In which of the parts of `identity_of` another job differs, in words; empty for the same job."""
    return " and ".join(name.replace("_", " ") for name in asked if found.get(name) != asked[name])


def output_name(prefix: str, split: str | None, key: str) -> str:
    """Megatron's convention for a dataset's prefix, with the split's name before it."""
    return "_".join([prefix, *([split] if split else []), key, "document"])
