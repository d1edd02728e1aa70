"""Prints the lines of the last rank on the console of rank 0.

Losses live on the last rank; rank 0 owns the console. The lines go through the launch's key-value store and a thread of
rank 0, so no rank waits for another to print a line.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch.distributed import DistError

from megatron_cod import console
from megatron_cod.launch.store import store_connection

_POLL_SECONDS = 0.2
_STORE_SECONDS = 30.0
_END = "end"
_LINE, _STATUS = "=", "~"
"""What a message that is not the end begins with."""


class Lines:
    """``send`` on the last rank; rank 0 prints the lines. Before ``attach``, and with one rank, each prints its own."""

    def __init__(
        self,
        show: Callable[[str], None] = console.print_line,
        show_status: Callable[[str], None] = console.print_status,
    ) -> None:
        """show: prints on the console of this process. show_status: a line of the run's progress."""
        self._shows = {_LINE: show, _STATUS: show_status}
        self._store: Any = None
        self._sent = 0
        self._thread: threading.Thread | None = None
        self._give_up_at = float("inf")

    def attach(self) -> None:
        """When the process group is there: connect the two ranks. Collective over all."""
        world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        if world > 1:
            connect = store_connection(_STORE_SECONDS)
            if rank in (0, world - 1):
                self.connect(connect(), reads=rank == 0)

    def connect(self, store: Any, reads: bool) -> None:
        """reads: this is the rank that prints."""
        if reads:
            self._thread = threading.Thread(target=self._read, args=(store,), daemon=True)
            self._thread.start()
        else:
            self._store = store

    def send(self, line: str) -> None:
        """A line for the console."""
        self._send_as(_LINE, line)

    def send_status(self, line: str) -> None:
        """A line of the run's progress, which a terminal shows in place of the one before."""
        self._send_as(_STATUS, line)

    def _send_as(self, kind: str, line: str) -> None:
        if self._store is None:
            self._shows[kind](line)
            return
        console.log_to_file(line)
        try:
            self._send(kind + line)
        except (DistError, RuntimeError) as error:  # rank 0 and its store are gone; this rank will end too
            self._store = None
            print(f"rank 0 is not reached: {' '.join(str(error).split())[:200]}", file=sys.stderr, flush=True)
            self._shows[kind](line)

    def end(self, seconds: float) -> None:
        """On the sending rank: mark the end. On rank 0: wait for it, at most ``seconds``. On other ranks: nothing."""
        if self._store is not None:
            with suppress(DistError, RuntimeError):  # no process waits for it
                self._send(_END)
        if self._thread is not None:
            self._give_up_at = time.monotonic() + seconds
            self._thread.join(seconds + 1.0)

    def _send(self, text: str) -> None:
        self._store.set(f"line/{self._sent}", text)
        self._sent += 1

    def _read(self, store: Any) -> None:
        number = 0
        while time.monotonic() < self._give_up_at:
            try:
                line = _take(store, f"line/{number}")
            except (DistError, RuntimeError):  # it does not answer: if it has gone for good, so will this run
                time.sleep(_POLL_SECONDS * 10)
                continue
            if line is None:
                time.sleep(_POLL_SECONDS)
            elif line == _END:
                return
            else:
                self._shows[line[0]](line[1:])
                number += 1


def _take(store: Any, key: str) -> str | None:
    if not store.check([key]):
        return None
    text = store.get(key).decode()
    store.delete_key(key)
    return text
