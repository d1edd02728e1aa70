"""The manifest of a dataset: a JSON file beside `.bin` and `.idx` that records how it was made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_cod.data.datasets.content import index_digest, tokens_digest
from megatron_cod.errors import UserError

FORMAT = 2


@dataclass(frozen=True)
class DatasetRecord:
    """Content of PREFIX.json. Holds nothing that changes between two equal runs, such as times.

    `text_bytes` counts UTF-8 bytes of the documents written; `empty`, `bad` and `duplicates` count documents omitted
    in the whole run, `empty` those without text under `json_key`; `tokenizer_files` has the SHA-256 of each file of
    the tokenizer, and `model_sha256` that of the model alone; `inputs` have "path", "size", "mtime_ns" and "format";
    `options` are those of the tool that the result depends on; `index_digest` and `tokens_digest` are of `.idx` and
    `.bin` (`content.py`). Records of earlier versions lack what has a default
    here, and the inputs' format.
    """

    tokenizer_type: str
    tokenizer_model: str | None
    model_sha256: str | None
    vocab_size: int
    eod_id: int | None
    append_eod: bool
    training_arguments: list[str]
    split: str | None
    json_key: str
    documents: int
    tokens: int
    text_bytes: int
    empty: int
    bad: int
    dtype: str
    inputs: list[dict[str, Any]]
    duplicates: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    tokenizer_files: dict[str, str] = field(default_factory=dict)
    hf_special_tokens: bool = True
    index_digest: str | None = None
    tokens_digest: str | None = None
    format: int = FORMAT


def record_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.json")


def dataset_files(prefix: str) -> list[Path]:
    """The files of a dataset: .bin, .json, .idx. The index is last: without it nothing can be read."""
    return [Path(f"{prefix}.bin"), record_path(prefix), Path(f"{prefix}.idx")]


def write_record(path: Path, record: DatasetRecord) -> None:
    path.write_text(json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_record(prefix: str | Path) -> DatasetRecord | None:
    """The record of a dataset, or None when there is none; raises UserError for one it cannot use."""
    path = record_path(prefix)
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") == 1:  # before inputs had sizes
            values = {**values, "inputs": [{"path": name} for name in values["inputs"]], "format": FORMAT}
        if values.get("format") != FORMAT:
            raise UserError(f"format {values.get('format')}, expected {FORMAT}")
        return DatasetRecord(**values)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path} is not a dataset record ({error}); make the dataset again or remove it") from error


def describes(record: DatasetRecord, prefix: str | Path) -> bool:
    """Whether a record is of the dataset beside it; True for records of earlier versions, which do not show it."""
    recorded = record.index_digest, record.tokens_digest
    return None in recorded or recorded == (index_digest(prefix), tokens_digest(f"{prefix}.bin"))
