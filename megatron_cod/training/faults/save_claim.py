"""One running job per ``--save``: a second one, such as a job queued again while the old one still ends, is refused.

Rank 0 keeps a small file there and writes it again every few seconds. No lock is needed, which network file systems may not
have, and none is left: a run is gone when its process is, or, where that cannot be asked, when its file no longer changes.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from megatron_cod.common.files import write_whole
from megatron_cod.errors import UserError
from megatron_cod.launch.exit_codes import fail
from megatron_cod.launch.scheduler import slurm_job
from megatron_cod.training.loop.observers import Observer

FILE = "running.json"
HEARTBEAT_SECONDS = 5.0
SILENT_SECONDS = 30.0
"""A run on another machine whose file stays the same for so long is gone."""


_KEYS = {"run", "host", "pid", "space", "started", "time"}


def _read(save: str | Path) -> dict[str, Any] | None:
    try:
        found = json.loads((Path(save) / FILE).read_text())
    except (OSError, ValueError):  # none, or half of one: it is replaced as a whole
        return None
    return found if isinstance(found, dict) and found.keys() >= _KEYS else None


def _space() -> str | None:
    """Within it a process number names one process: this boot of this machine, and this container; None elsewhere."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process began, in clock ticks of this boot: numbers are given again. None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _job() -> str | None:
    return slurm_job() or os.environ.get("TORCHELASTIC_RUN_ID")


def _is_live(save: str, found: dict[str, Any], log: Callable[[str], None]) -> bool:
    space = _space()
    if space is not None and found.get("space") == space:
        return _started(int(found["pid"])) == found.get("started")
    log(f"--save {save} was in use by a run on {found['host']}: waiting up to {SILENT_SECONDS:.0f} s for a sign of it")
    deadline = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, SILENT_SECONDS / 10))
        now = _read(save)
        if now is None:
            return False  # it has ended
        if now != found:
            return True
    return False


def check_no_other_run(save: str | None, log: Callable[[str], None]) -> None:
    """UserError where another run is alive in ``--save``, with its host, job and last heartbeat. For rank 0."""
    found = _read(save) if save else None
    if save is None or found is None or not _is_live(save, found, log):
        return
    job = f", job {found['job']}" if found.get("job") else ""
    raise UserError(
        f"--save {save} is in use by another run: process {found['pid']} on {found['host']}{job}, last heartbeat "
        f"{(_read(save) or found)['time']}; stop it first, or give another --save"
    )


class SaveClaim(Observer):
    """This run's file in ``--save``, from the checks to the end of the run."""

    def __init__(self, save: str) -> None:
        """OSError where it cannot be written."""
        self._path = Path(save) / FILE
        pid = os.getpid()
        self._facts = {
            "run": secrets.token_hex(8),
            "host": socket.gethostname(),
            "job": _job(),
            "pid": pid,
            "space": _space(),
            "started": _started(pid),
        }
        self._over = threading.Event()
        self._writing = threading.Lock()
        self._heartbeats = 0
        self._write()
        threading.Thread(target=self._heartbeat, name="claim of --save", daemon=True).start()

    def _write(self) -> None:
        self._heartbeats += 1
        facts = {**self._facts, "beat": self._heartbeats, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        write_whole(self._path, json.dumps(facts), self._facts["run"])

    def _is_ours(self) -> bool:
        found = _read(self._path.parent)
        return found is None or found["run"] == self._facts["run"]

    def _heartbeat(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            if not self._is_ours():  # two runs began at the same moment: the later file counts
                fail(f"--save {self._path.parent} was taken by another run, which started at the same time")
            with self._writing, suppress(OSError):  # a full disk: the next save reports it
                if not self._over.is_set():  # the file would be back after the end of the run
                    self._write()

    def around_training(self) -> AbstractContextManager[None]:
        return self._held()

    @contextmanager
    def _held(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._over.set()
            with self._writing:
                if self._is_ours():
                    with suppress(OSError):
                        self._path.unlink()
