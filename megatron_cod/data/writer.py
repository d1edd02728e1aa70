"""Write datasets under temporary names and give them their real names when all are complete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_cod.data.record import DatasetRecord, record_path, write_record

_MAX_DOCUMENT = np.iinfo(np.int32).max  # Megatron's index holds lengths as int32


def dataset_files(prefix: str) -> list[Path]:
    """The files of a dataset: .bin, .json, .idx. The index is last: without it nothing can be read."""
    return [Path(f"{prefix}.bin"), record_path(prefix), Path(f"{prefix}.idx")]


def refuse_overwrite(prefixes: Sequence[str]) -> None:
    """Raises ValueError naming the files that exist already."""
    existing = [str(path) for prefix in prefixes for path in dataset_files(prefix) if path.exists()]
    if existing:
        raise ValueError(f"output exists already: {', '.join(existing)}; choose another prefix or give --overwrite")


class DatasetWriter:
    """One dataset `PREFIX.bin/.idx`, each document one sequence, as Megatron's GPT dataset wants it."""

    def __init__(self, prefix: str, dtype: type[np.number]) -> None:
        from megatron_cod.data.megatron_api import IndexedDatasetBuilder

        self.prefix = prefix
        self.documents = 0
        self.tokens = 0
        self.text_bytes = 0
        self._builder = IndexedDatasetBuilder(str(_partial(dataset_files(prefix)[0])), dtype=dtype)

    def add(self, ids: np.ndarray, text_bytes: int) -> None:
        """Append one document, `ids` [tokens]; ValueError when it is longer than Megatron can index."""
        if len(ids) > _MAX_DOCUMENT:
            raise ValueError(f"a document has {len(ids)} tokens, more than Megatron's {_MAX_DOCUMENT}; cut it")
        self._builder.add_document(ids, [len(ids)])
        self.documents += 1
        self.tokens += len(ids)
        self.text_bytes += text_bytes

    def finish(self, record: DatasetRecord) -> None:
        """Complete all three files, still under their temporary names."""
        _, record_file, index = dataset_files(self.prefix)
        self._builder.finalize(str(_partial(index)))
        write_record(_partial(record_file), record)

    def discard(self) -> None:
        """Remove the temporary files."""
        self._builder.data_file.close()
        for path in dataset_files(self.prefix):
            _partial(path).unlink(missing_ok=True)


def publish(writers: Sequence[DatasetWriter]) -> None:
    """Rename the files of all datasets; a reader never sees an index beside another run's data."""
    files = [dataset_files(writer.prefix) for writer in writers]
    for *_, index in files:
        index.unlink(missing_ok=True)
    for stage in zip(*files, strict=True):
        for path in stage:
            _partial(path).replace(path)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
