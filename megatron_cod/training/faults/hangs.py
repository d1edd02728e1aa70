"""A rank that stops answering ends the job with a message that names it, before the collectives' own time-out, which
names nobody.

Each rank has a thread that leaves a sign of life in the launch's key-value store: how many forward steps it has begun,
when, and what its main thread is doing. It reads the sign of the next rank (a stopped or lost process is found by its
neighbour); and where nobody makes progress though all are alive, rank 0 reads all signs and names who keeps the others
waiting. The training itself pays one counter a forward step.
"""

from __future__ import annotations

import faulthandler
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from torch.distributed import PrefixStore, TCPStore

from megatron_cod.training import rank_logs
from megatron_cod.training.faults.events import Events, this_host

HUNG = 86
"""Exit code of a run that was ended because a rank hung."""

_SIGNS = "sign/{}"
_VERDICT = "verdict"
_SAVING = "saving a checkpoint"
_WAITING = "waiting for other ranks"
# Files of which a frame says what the main thread is at; the innermost that matches counts.
_PLACES = (
    ("torch/distributed/distributed_c10d.py", _WAITING),
    ("megatron/core/pipeline_parallel/p2p_communication.py", _WAITING),
    ("megatron/training/checkpointing.py", _SAVING),
    ("torch/utils/data/", "loading data"),
    ("megatron_cod/training/batches.py", "loading data"),
)


@dataclass(frozen=True)
class Sign:
    """A rank's sign of life. Times are its own clock's, and only compared with themselves."""

    number: int
    """Counts up with every sign: who does not count up is silent."""
    forwards: int
    """Forward steps begun."""
    still: float
    """Seconds since the last of them began."""
    doing: str
    host: str
    pid: int


def doing(frame: FrameType | None) -> str:
    """What a thread with this innermost frame is at, and where, in a few words."""
    what, where = "", ""
    while frame is not None:
        path = frame.f_code.co_filename
        if not what:
            what = next((name for part, name in _PLACES if part in path), "")
        if not where and "/torch/" not in path and "/threading.py" not in path:
            where = f"{'/'.join(path.split('/')[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return f"{what or 'computing'} ({where})"


def culprits(signs: dict[int, Sign], timeout: float) -> list[int]:
    """Of ranks that are all alive and all still, those that the others wait for.

    Who is not itself waiting, else who has begun the fewest forward steps. None while one of them saves, for which three
    times the time-out is allowed, or has made progress.
    """
    if any(sign.still < timeout * (3 if sign.doing.startswith(_SAVING) else 1) for sign in signs.values()):
        return []
    busy = [rank for rank, sign in signs.items() if not sign.doing.startswith(_WAITING)]
    if busy and len(busy) < len(signs):
        return busy
    fewest = min(sign.forwards for sign in signs.values())
    behind = [rank for rank, sign in signs.items() if sign.forwards == fewest]
    return behind if len(behind) < len(signs) else list(signs)


class HangWatch:
    """The threads of one rank. ``beat`` at every forward step, ``stop`` when the training is over."""

    def __init__(
        self,
        timeout: float,
        rank: int,
        world: int,
        connect: Callable[[], Any],
        events: Events,
        end: Callable[[int], Any] = os._exit,
    ) -> None:
        """timeout: seconds without a sign of life, or of progress. connect: a store for the thread alone.
        end: ends this process with an exit code."""
        self._timeout, self._rank, self._world = timeout, rank, world
        self._connect, self._events, self._end = connect, events, end
        self._interval = min(max(timeout / 8, 0.2), 15.0)
        self._forwards, self._since = 0, time.monotonic()
        self._main = threading.main_thread().ident
        self._over = threading.Event()
        self._answered = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to leave signs, and to look for those of others."""
        self._thread.start()
        threading.Thread(target=self._watch_store, daemon=True).start()

    def beat(self) -> None:
        """A forward step begins."""
        self._forwards += 1
        self._since = time.monotonic()

    def stop(self) -> None:
        """Leave a last sign, that of one who is done."""
        self._over.set()
        self._thread.join(self._interval)

    def _run(self) -> None:
        store = self._connect()
        number, seen, changed = 0, -1, time.monotonic()
        neighbour = (self._rank + 1) % self._world
        try:
            while not self._over.wait(self._interval):
                number += 1
                store.set(_SIGNS.format(self._rank), json.dumps(asdict(self._sign(number))))
                if store.check([_VERDICT]):
                    self._leave(store.get(_VERDICT).decode(), speak=False)
                sign = _read(store, neighbour)
                now = self._answered = time.monotonic()
                if sign is None or sign.number == 0:  # not begun, or done
                    changed = now
                elif sign.number != seen:
                    seen, changed = sign.number, now
                elif now - changed > self._timeout:
                    self._tell(store, [neighbour], {neighbour: sign}, f"no sign of life for {now - changed:.0f} s")
                if self._rank == 0 and self._forwards and now - self._since > self._timeout:
                    self._judge(store)
            store.set(_SIGNS.format(self._rank), json.dumps(asdict(self._sign(0))))
        except (RuntimeError, OSError):
            # The store is gone: its host ends, or has gone, and the launcher or the other thread has the word.
            return

    def _sign(self, number: int) -> Sign:
        frame = sys._current_frames().get(self._main) if self._main is not None else None
        still = time.monotonic() - self._since
        return Sign(number, self._forwards, round(still, 1), doing(frame), this_host(), os.getpid())

    def _judge(self, store: Any) -> None:
        signs = {rank: sign for rank in range(self._world) if (sign := _read(store, rank)) and sign.number}
        # Where some are done nobody waits for the others.
        found = culprits(signs, self._timeout) if len(signs) == self._world else []
        if found:
            self._tell(store, found, signs, f"no progress for {signs[found[0]].still:.0f} s")

    def _tell(self, store: Any, ranks: list[int], signs: dict[int, Sign], what: str) -> None:
        named = [
            f"rank {rank} on {signs[rank].host} (pid {signs[rank].pid}, {signs[rank].doing})" for rank in ranks[:4]
        ]
        line = f"{what} from {', '.join(named)}{' and others' if len(ranks) > 4 else ''}"
        # The first who says so is heard; the others end with its words.
        first = store.compare_set(_VERDICT, "", line).decode()
        speak = first == line
        if speak:
            step = f"forward step {self._forwards}"
            self._events.add_here("hang", ranks=ranks, what=line, seen_by=self._rank, at=step)
        self._leave(first, speak)

    def _leave(self, line: str, speak: bool) -> None:
        if speak:
            rank_logs.speak(f"error: {line}; the job ends")
        else:
            time.sleep(min(2 * self._interval, 5.0))  # the line first
        faulthandler.dump_traceback(file=2, all_threads=True)  # where this rank was
        self._end(HUNG)

    def _watch_store(self) -> None:
        """A store whose host is stopped answers nothing, and keeps the other thread for ever."""
        while not self._over.wait(self._interval):
            silent = time.monotonic() - self._answered
            if silent > self._timeout + 2 * self._interval:
                host = "rank 0's process" if "TORCHELASTIC_RUN_ID" not in os.environ else "the launcher"
                line = f"no answer for {silent:.0f} s from the store that {host} keeps"
                self._events.add_here("hang", what=line, seen_by=self._rank)
                self._leave(line, speak=True)


def _read(store: Any, rank: int) -> Sign | None:
    key = _SIGNS.format(rank)
    return Sign(**json.loads(store.get(key))) if store.check([key]) else None


def store_connection(timeout: float) -> Callable[[], Any]:
    """Connects to the store that the launcher, or rank 0, keeps. Collective over all ranks.

    The keys get a prefix that is drawn once a start: torchrun may keep one store over its restarts, and counts them on each
    machine by itself.
    """
    token = [secrets.token_hex(8)]
    torch.distributed.broadcast_object_list(token, 0)

    def connect() -> Any:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))
        return PrefixStore(token[0], store)

    return connect
