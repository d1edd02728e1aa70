"""What a dataset was made with: a JSON file beside `.bin` and `.idx`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

FORMAT = 1


@dataclass(frozen=True)
class DatasetRecord:
    """Content of PREFIX.json. Holds nothing that changes between two equal runs, such as times.

    `text_bytes` counts UTF-8 bytes of the documents written; `empty` and `bad` count documents left out
    in the whole run; `model_sha256` is of the tokenizer's model file.
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
    inputs: list[str]
    format: int = FORMAT


def record_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.json")


def write_record(path: Path, record: DatasetRecord) -> None:
    path.write_text(json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_record(prefix: str | Path) -> DatasetRecord | None:
    """The record of a dataset, or None when there is none; raises ValueError for one it cannot use."""
    path = record_path(prefix)
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise ValueError(f"format {values.get('format')}, expected {FORMAT}")
        return DatasetRecord(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a dataset record ({error}); make the dataset again or remove it") from error
