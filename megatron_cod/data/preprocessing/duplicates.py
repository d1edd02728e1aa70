"""Find duplicate documents by a hash of their text, in constant memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_cod.data.preprocessing.token_runs import Run

# Documents compared at once: 24 bytes each in memory, and what sorting them takes, 150 MB in all.
_AT_ONCE = 1 << 21
_ROW = np.dtype([("hash", "<u8", (2,)), ("number", "<i8")])


def input_order(table: np.ndarray) -> np.ndarray:
    """Places in a run's table, in the order of the input."""
    return np.lexsort((table["place"], table["file"]))


def mark_duplicates(runs: Sequence[Run], documents: int, folder: Path) -> np.ndarray:
    """uint8 [documents], in the order of the input: 1 for one whose text an earlier document has. Mapped from a file.

    documents: how many to compare. Hashes are 128 bits: two texts do not share one by chance. First the
    hashes are divided over files by their first bits, then each file is searched. Takes 25 bytes a
    document on disk.
    """
    folder.mkdir(exist_ok=True)
    bits = max(0, (documents // _AT_ONCE).bit_length())
    files = [folder / f"hashes{number}" for number in range(1 << bits)]
    number = 0
    for run in runs:
        hashes = run.table()["hash"]
        if number >= documents or not len(hashes):
            continue
        rows = np.empty(len(hashes), _ROW)
        rows["hash"] = hashes[input_order(run.table())]
        rows["number"] = np.arange(number, number + len(rows))
        rows, number = rows[: documents - number], number + len(rows)
        to = rows["hash"][:, 0] >> np.uint64(64 - bits) if bits else np.zeros(len(rows), np.uint64)
        order = np.argsort(to, kind="stable")
        bounds = np.searchsorted(to[order], np.arange(len(files) + 1, dtype=np.uint64))
        for place, path in enumerate(files):
            with path.open("ab") as file:
                rows[order[bounds[place] : bounds[place + 1]]].tofile(file)
    marks = np.memmap(folder / "duplicates", np.uint8, "w+", shape=(max(documents, 1),))
    for path in files:
        rows = np.fromfile(path, _ROW) if path.exists() else np.empty(0, _ROW)
        # Stable: of equal hashes the first in the order of the input comes first.
        rows = rows[np.lexsort((rows["hash"][:, 1], rows["hash"][:, 0]))]
        again = np.all(rows["hash"][1:] == rows["hash"][:-1], axis=1)
        marks[rows["number"][1:][again]] = 1
        path.unlink(missing_ok=True)
    return marks[:documents]
