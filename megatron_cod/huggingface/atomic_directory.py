"""A directory that appears at once: written under another name, resumed there after an interruption, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from megatron_cod.common.files import write_whole
from megatron_cod.errors import UserError

_RECORD = "conversion.json"


class PartialDirectory:
    """``OUTPUT.part`` until ``finish`` renames it to OUTPUT.

    job: what makes this conversion the same as an interrupted one (source, options), as JSON: then what is done is kept.
    Raises UserError when OUTPUT exists and is not an empty directory.
    """

    def __init__(self, output: Path, job: dict[str, Any]) -> None:
        self.output = output
        self.folder = output.with_name(output.name + ".part")
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UserError(f"{output} exists already; give another --output, or remove it")
        self._job = json.loads(json.dumps(job))
        self._done: dict[str, Any] = {}
        if self.folder.exists():
            try:
                kept = json.loads((self.folder / _RECORD).read_text())
            except (OSError, json.JSONDecodeError):
                kept = {}
            if kept.get("job") == self._job:
                self._done = kept["done"]
            else:
                shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def done(self, name: str) -> Any:
        """What ``mark`` noted of a file that is there in full, or None."""
        found = self._done.get(name)
        path = self.folder / name
        return found["note"] if found and path.is_file() and path.stat().st_size == found["bytes"] else None

    def mark(self, name: str, note: Any) -> None:
        """Note that a file is whole."""
        self._done[name] = {"bytes": (self.folder / name).stat().st_size, "note": note}
        write_whole(self.folder / _RECORD, json.dumps({"job": self._job, "done": self._done}))

    def check_space(self, needed: int) -> None:
        """UserError when the disk has no room for ``needed`` more bytes."""
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            if not self._done:
                shutil.rmtree(self.folder)
            raise UserError(f"{self.output} takes {needed / 1e9:.2f} GB more, the disk has {free / 1e9:.2f} GB free")

    def discard(self) -> None:
        """Remove what was written, so that nothing is taken up again."""
        shutil.rmtree(self.folder)

    def finish(self) -> None:
        """Give it its name: from now on it is complete."""
        for record in self.folder.glob(f"{_RECORD}*"):  # one beside it if a kill came while it was written
            record.unlink()
        if self.output.is_dir():
            self.output.rmdir()
        os.replace(self.folder, self.output)
