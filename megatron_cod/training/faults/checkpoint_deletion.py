"""``--keep-last-checkpoints``: old checkpoints are deleted while a run trains."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_cod.args import MegatronArgs
from megatron_cod.checkpoint.directory import TRACKER
from megatron_cod.checkpoint.retention import hide, surplus
from megatron_cod.training.loop.observers import Observer, Run


class Retention(Observer):
    """Keeps the newest K checkpoints of a run (``--keep-last-checkpoints``). Lives on rank 0.

    Megatron has no hook after a save, and on a GPU it is not patched. So rank 0 looks, where its own code runs anyway:
    in the first forward step of each iteration, and once after training. By then Megatron has written the tracker, as
    it does last, in an asynchronous save too. A look is one ``stat``.
    """

    def __init__(self, args: MegatronArgs, log: Callable[[str], None], in_use: Collection[Path] = frozenset()) -> None:
        """args: Megatron's. Takes ``save_retain_interval`` out of them: two that delete would get in each other's way.
        in_use: checkpoints to leave, at any time; they are deleted later."""
        self._args, self._in_use = args, in_use
        assert args.save is not None
        self._directory = Path(args.save)
        self._keep = args.keep_last_checkpoints or 1  # as Megatron's flag alone
        self._every: int | None = args.save_retain_interval
        args.save_retain_interval = None
        self._log = log
        self._seen: Any = None
        self._threads: list[threading.Thread] = []

    @classmethod
    def of(cls, run: Run) -> Retention | None:
        """On rank 0, where ``--keep-last-checkpoints`` asks for it, and where Megatron would delete what is exported."""
        args = run.args
        deletes = args.keep_last_checkpoints or (args.hf_export_interval and args.save_retain_interval)
        return cls(args, run.log, run.in_use) if args.save and deletes and args.rank == 0 else None

    def step_begins(self) -> None:
        """Look whether the step before saved."""
        self.check_tracker()

    def check_tracker(self) -> None:
        """Delete the surplus when the tracker has changed.

        A failed deletion is logged, and ends no training.
        """
        try:
            now = os.stat(self._directory / TRACKER)
        except OSError:
            return
        if (now.st_mtime_ns, now.st_size) == self._seen:
            return
        self._seen = (now.st_mtime_ns, now.st_size)
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        try:
            extra = surplus(self._directory, self._keep, self._every)
            hidden = [hide(path) for path in extra if path not in self._in_use]
        except OSError as error:
            self._log(f"WARNING: --keep-last-checkpoints cannot delete: {error}")
            return
        if hidden:
            # Deleting terabytes takes minutes on a shared file system, and the next step waits for rank 0.
            self._threads.append(threading.Thread(target=self._delete, args=(hidden,)))
            self._threads[-1].start()

    def _delete(self, hidden: list[Path]) -> None:
        for path in hidden:
            try:
                shutil.rmtree(path)
            except OSError as error:
                self._log(f"WARNING: --keep-last-checkpoints cannot delete: {error}")

    @contextmanager
    def around_training(self) -> Iterator[None]:
        """The last save comes after the last forward step. Megatron also ends with SystemExit."""
        try:
            yield
        finally:
            self._seen = None  # two saves may fall into one tick of the file system's clock
            self.check_tracker()
            for thread in self._threads:
                thread.join()
