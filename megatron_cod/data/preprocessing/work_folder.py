"""The folder PREFIX.partial, in which a run works until its output is complete, and from which an interrupted one goes
on."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_cod.common.files import write_whole
from megatron_cod.data.datasets.content import remove_indices
from megatron_cod.data.preprocessing.job import what_differs
from megatron_cod.errors import UserError, bad_input

_JOB, _PUBLISH, _LOCK = "job.json", "publish.json", "lock"
_SECONDS_TO_WAIT = 10.0


class WorkFolder:
    """Holds the folder for this process alone; `runs`, `plan` and `out` are folders in it."""

    def __init__(self, output_prefix: str) -> None:
        self.path = Path(f"{output_prefix}.partial")
        self.runs, self.plan, self.out = (self.path / name for name in ("runs", "plan", "out"))
        self._lock: int | None = None

    def exists(self) -> bool:
        return self.path.is_dir()

    @property
    def is_held(self) -> bool:
        return self._lock is not None

    def lock(self) -> None:
        """Make and hold the folder. Raises UserError when another run holds it.

        A killed run's workers hold it until they are gone, so that none of them writes any more when this returns.
        """
        if self.is_held:
            return
        until = time.monotonic() + _SECONDS_TO_WAIT
        while not self._try_lock():
            if time.monotonic() > until:
                raise UserError(f"another run is at work in {self.path}; wait for it to end")
            time.sleep(0.05)

    def _try_lock(self) -> bool:
        path = self.path / _LOCK
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another run may have removed the folder since the file was opened.
            if os.path.samestat(os.fstat(handle), path.stat()):
                self._lock = handle
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(handle)
        return False

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def begin(self, job: Mapping[str, Any], overwrite: bool) -> bool:
        """Prepare for a job; true when finished parts of the same job are there to continue with.

        Raises UserError when those of another job are, unless they are to be overwritten.
        """
        path = self.path / _JOB
        asked = json.loads(json.dumps(job))
        with bad_input(path):
            found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if found != asked:
            if found is not None and self.has_parts() and not overwrite:
                raise UserError(
                    f"{self.path} holds an unfinished run with other {what_differs(asked, found)}; repeat that command to "
                    "resume it, or give --overwrite to start again"
                )
            self._clear()
            write_whole(path, json.dumps(asked, indent=1), sync=True)
        shutil.rmtree(self.plan, ignore_errors=True)
        shutil.rmtree(self.out, ignore_errors=True)
        for folder in (self.runs, self.plan, self.out):
            folder.mkdir(exist_ok=True)
        for path in self.runs.iterdir():
            if path.suffix.removeprefix(".").isdigit():  # what a killed process was writing
                path.unlink()
        return self.has_parts()

    def has_parts(self) -> bool:
        return self.runs.is_dir() and any(path.suffix == ".json" for path in self.runs.iterdir())

    def publish(self, datasets: Sequence[Sequence[Path]]) -> None:
        """Move the files of all datasets from `out` to where they belong, and remove the folder.

        datasets: the files of each, the index last. What is to be done is written down before, so that it can be
        finished after a kill; a reader never sees an index beside another run's data. What Megatron keeps of a
        dataset that is replaced goes with it.
        """
        write_whole(self.path / _PUBLISH, json.dumps([[str(path) for path in files] for files in datasets]), sync=True)
        self.finish_publishing()

    def finish_publishing(self) -> bool:
        """Continue an interrupted publication; false when there is none."""
        path = self.path / _PUBLISH
        if not path.exists():
            return False
        datasets = [[Path(name) for name in files] for files in json.loads(path.read_text(encoding="utf-8"))]
        for *_, index in datasets:
            if (self.out / index.name).exists():
                index.unlink(missing_ok=True)
                remove_indices(index.with_suffix(""))
        for stage in zip(*datasets, strict=True):
            for target in stage:
                source = self.out / target.name
                if source.exists():
                    source.replace(target)
        self._clear()
        path.unlink()
        self.discard()
        return True

    def discard(self) -> None:
        """Remove the folder."""
        self._clear()
        shutil.rmtree(self.path, ignore_errors=True)
        self.unlock()

    def _clear(self) -> None:
        """Remove all but the lock and what publishing is to do."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (_LOCK, _PUBLISH):
                path.unlink()
