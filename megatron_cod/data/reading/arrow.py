"""Read columns of Parquet and Arrow files as bytes, a few rows at a time. Needs pyarrow, which is optional."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from megatron_cod.data.reading.inputs import InputFile
from megatron_cod.errors import UserError

# Rows are read in groups of about so many bytes.
_GROUP_BYTES = 1 << 22
_MOST_ROWS = 1024

Row = tuple[bytes | None, ...]


class RowGroup(NamedTuple):
    """Rows that follow each other; `place` is the number (from 0) of the first."""

    place: int
    rows: list[Row]


def _import_pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: reading {path.suffix} needs the package pyarrow (pip install pyarrow)") from error
    return pyarrow


def divide_rows(source: InputFile, size: int) -> list[tuple[int, int]]:
    """Ranges of rows [first, last) that can be read apart, each of about `size` bytes or one row group of Parquet.

    Raises UserError when the file cannot be read.
    """
    pyarrow = _import_pyarrow(source.path)
    try:
        if source.format == "parquet":
            with pyarrow.parquet.ParquetFile(source.path) as file:
                groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
                sizes = [(group.num_rows, group.total_byte_size) for group in groups]
        else:
            sizes = [(batch.num_rows, batch.nbytes) for batch in _record_batches(pyarrow, source.path)]
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(_damaged(source.path, error)) from None
    bounds, rows, held = [0], 0, 0
    for count, length in sizes:
        rows, held = rows + count, held + length
        if held >= size:
            bounds.append(rows)
            held = 0
    if bounds[-1] != rows:
        bounds.append(rows)
    return list(pairwise(bounds))


def read_rows(source: InputFile, columns: Sequence[str], first: int, last: int) -> Iterator[RowGroup]:
    """Rows [first, last) of the named columns, strings as their bytes. Raises UserError for unreadable values:
    a damaged file, a column that is missing or holds no strings."""
    pyarrow = _import_pyarrow(source.path)
    try:
        read = _parquet_batches if source.format == "parquet" else _arrow_batches
        for place, batch in read(pyarrow, source.path, columns, first):
            for start in range(max(first - place, 0), min(last - place, batch.num_rows), _rows_at_once(batch)):
                count = min(_rows_at_once(batch), last - place - start)
                part = batch.slice(start, count)
                values = [_as_bytes(pyarrow, source.path, name, part) for name in columns]
                rows = list(zip(*values, strict=True))
                del values, part  # the reader takes the rows out of their list one by one: a text may be 100 MB
                yield RowGroup(place + start, rows)
            if place + batch.num_rows >= last:
                return
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(_damaged(source.path, error)) from None


def read_objects(source: InputFile) -> Iterator[dict[str, Any]]:
    """All rows with all their columns, as JSON would hold them. Raises UserError for a damaged file."""
    pyarrow = _import_pyarrow(source.path)
    try:
        read = _parquet_batches if source.format == "parquet" else _arrow_batches
        for _, batch in read(pyarrow, source.path, None, 0):
            for start in range(0, batch.num_rows, _rows_at_once(batch)):
                yield from batch.slice(start, _rows_at_once(batch)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(_damaged(source.path, error)) from None


def _rows_at_once(batch: Any) -> int:
    return max(1, min(_MOST_ROWS, _GROUP_BYTES * batch.num_rows // max(batch.nbytes, 1)))


def _parquet_batches(pyarrow: Any, path: Path, columns: Sequence[str] | None, first: int) -> Iterator[tuple[int, Any]]:
    """(number of the first row, rows) from the row group on that holds row `first`; all columns where none are named."""
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_GROUP_BYTES) as file:
        names = None if columns is None else list(columns)
        _check_columns(path, file.schema_arrow, columns)
        place, metadata = 0, file.metadata
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if place + group.num_rows > first:
                each = max(1, min(_MOST_ROWS, _GROUP_BYTES * group.num_rows // max(group.total_byte_size, 1)))
                within = place
                for batch in file.iter_batches(each, row_groups=[number], columns=names, use_threads=False):
                    yield within, batch
                    within += batch.num_rows
            place += group.num_rows


def _arrow_batches(pyarrow: Any, path: Path, columns: Sequence[str] | None, first: int) -> Iterator[tuple[int, Any]]:
    place = 0
    for batch in _record_batches(pyarrow, path):
        _check_columns(path, batch.schema, columns)
        if place + batch.num_rows > first:
            yield place, batch
        place += batch.num_rows


def _record_batches(pyarrow: Any, path: Path) -> Iterator[Any]:
    """The batches of an Arrow file of either kind: a stream, as `datasets` writes it, or the kind with a table of
    contents.

    The file is mapped into memory: passing over a batch reads its header only. UserError for a stream without an end
    mark: it was cut between two batches, which pyarrow takes for its end.
    """
    with pyarrow.memory_map(str(path)) as mapped:
        try:
            reader = pyarrow.ipc.open_stream(mapped)
        except pyarrow.ArrowInvalid:
            mapped.seek(0)
            file = pyarrow.ipc.open_file(mapped)
            yield from (file.get_batch(number) for number in range(file.num_record_batches))
            return
        place, rows = mapped.tell(), 0
        for batch in reader:
            yield batch
            place, rows = mapped.tell(), rows + batch.num_rows
        if mapped.tell() == place:
            raise UserError(f"{path}: cut Arrow stream (no end mark behind its {rows} rows)")


def _check_columns(path: Path, schema: Any, columns: Sequence[str] | None) -> None:
    for name in columns or ():
        if name not in schema.names:
            found = ", ".join(schema.names[:8]) or "none"
            raise UserError(f"{path}: no column {name!r} (columns here: {found}); choose with --json-keys")


def _as_bytes(pyarrow: Any, path: Path, name: str, batch: Any) -> list[bytes | None]:
    column = batch.column(batch.schema.get_field_index(name))
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pyarrow.types.is_string_view(kind):
        column = column.cast(pyarrow.large_string())
    elif not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise UserError(f"{path}: column {name!r} holds {kind}, not strings")
    # As bytes, since text that is not UTF-8 is an error of one row and not of the batch.
    return column.cast(pyarrow.large_binary()).to_pylist()


def _damaged(path: Path, error: Exception) -> str:
    return f"{path}: cannot be read as {path.suffix.removeprefix('.')} ({' '.join(str(error).split())[:200]})"
