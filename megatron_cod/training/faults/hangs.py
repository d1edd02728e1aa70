"""A rank that stops answering ends the job with a message that names it, before the collectives' own time-out, which
names no process.

Each rank has a thread that leaves a heartbeat in the launch's key-value store: how many forward steps it has begun,
when, and what its main thread is doing. It reads the sign of the next rank (a stopped or lost process is found by its
neighbour); and where no process makes progress though all are alive, rank 0 reads all signs and names who keeps the others
waiting. The training itself pays one counter a forward step.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from megatron_cod import console
from megatron_cod.checkpoint.events import Events
from megatron_cod.launch.scheduler import this_host
from megatron_cod.training.faults.collectives import Collectives, collectives_here
from megatron_cod.training.faults.hang_diagnosis import Diagnosis, Heartbeat, Limits, diagnose
from megatron_cod.training.faults.main_thread_state import Wait, collectives_begun, doing

HUNG = 86
"""Exit code of a run that was ended because a rank hung."""

_SIGNS = "sign/{}"
_VERDICT = "verdict"


class HangWatch:
    """The threads of one rank. ``beat`` at every forward step, ``stop`` when the training is over."""

    def __init__(
        self,
        limits: Limits,
        rank: int,
        world: int,
        connect: Callable[[], Any],
        events: Events,
        end: Callable[[int], Any] = os._exit,
        replayed: bool = False,
    ) -> None:
        """connect: a store for the thread alone. end: ends this process with an exit code. replayed: forward steps of a
        validation may be replays of a graph, which no event reports; collectives that are begun are progress then too."""
        self._limits, self._rank, self._world = limits, rank, world
        self._connect, self._events, self._end = connect, events, end
        self._replayed, self._collectives = replayed, 0
        self._interval = limits.interval
        self._forwards, self._since = 0, time.monotonic()
        self._main = threading.main_thread().ident
        self._wait = Wait()
        self._over = threading.Event()
        self._answered = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to write heartbeats, and to check those of others."""
        self._thread.start()
        threading.Thread(target=self._watch_store, daemon=True).start()

    def heartbeat(self) -> None:
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
            # The first sign at once: a rank that leaves none is not missed.
            while not self._over.wait(self._interval if number else 0.0):
                number += 1
                store.set(_SIGNS.format(self._rank), json.dumps(asdict(self._sign(number))))
                if store.check([_VERDICT]):
                    self._leave(spoken=False)
                sign = _read(store, neighbour)
                now = self._answered = time.monotonic()
                if sign is None or sign.number == 0:  # not begun, or done
                    changed = now
                elif sign.number != seen:
                    seen, changed = sign.number, now
                elif now - changed > self._limits.timeout:
                    self._write(
                        store, Diagnosis([neighbour]), {neighbour: sign}, f"no heartbeat for {now - changed:.0f} s"
                    )
                if self._rank == 0 and now - self._since > self._decided_after():
                    self._decide(store)
            store.set(_SIGNS.format(self._rank), json.dumps(asdict(self._sign(0))))
        except (RuntimeError, OSError):
            # The store is gone: its host ends, or has ended, and the launcher or the other thread reports it.
            return

    def _sign(self, number: int) -> Heartbeat:
        frame = sys._current_frames().get(self._main) if self._main is not None else None
        if self._replayed and collectives_begun() != self._collectives:
            self._collectives, self._since = collectives_begun(), time.monotonic()
        still = time.monotonic() - self._since
        # A rank that continues need not write its state.
        at = collectives_here() if number and still > self._interval else Collectives()
        waited = round(max(self._wait.observe(frame), at.oldest), 1)
        return Heartbeat(number, self._forwards, round(still, 1), waited, doing(frame), this_host(), os.getpid(), at)

    def _decided_after(self) -> float:
        patience = self._limits.patience(self._forwards > 0)
        return min(self._limits.timeout, patience) if self._forwards else patience

    def _decide(self, store: Any) -> None:
        signs = {rank: sign for rank in range(self._world) if (sign := _read(store, rank)) and sign.number}
        # If some are done, the others are not waited for.
        found = diagnose(signs, self._limits) if len(signs) == self._world else None
        if found:
            self._write(store, found, signs, f"no progress for {signs[found.ranks[0]].still:.0f} s")

    def _write(self, store: Any, found: Diagnosis, signs: dict[int, Heartbeat], what: str) -> None:
        named = [
            f"rank {rank} on {signs[rank].host} (pid {signs[rank].pid}, {signs[rank].doing})"
            for rank in found.ranks[:4]
        ]
        line = f"{what} from {', '.join(named)}{' and others' if len(found.ranks) > 4 else ''}{found.why}"
        # The first report counts; the others end with its line.
        spoken = store.compare_set(_VERDICT, "", line).decode() == line
        if spoken:
            step = f"forward step {self._forwards}" if self._forwards else "set-up"
            self._report(line, ranks=found.ranks, at=step)
        self._leave(spoken)

    def _report(self, line: str, **facts: Any) -> None:
        console.print_error(f"error: {line}; the job ends")  # first: the file system may be what hangs
        self._events.add_here("hang", what=line, seen_by=self._rank, **facts)

    def _leave(self, spoken: bool) -> None:
        if not spoken:
            time.sleep(min(2 * self._interval, 5.0))  # the line first
        faulthandler.dump_traceback(file=2, all_threads=True)  # where this rank was
        self._end(HUNG)

    def _watch_store(self) -> None:
        """A store whose host is stopped answers nothing, and keeps the other thread forever."""
        while not self._over.wait(self._interval):
            silent = time.monotonic() - self._answered
            if silent > self._limits.timeout + 2 * self._interval:
                host = "rank 0's process" if "TORCHELASTIC_RUN_ID" not in os.environ else "the launcher"
                line = f"no answer for {silent:.0f} s from the store that {host} keeps"
                self._report(line)
                self._leave(spoken=True)


def _read(store: Any, rank: int) -> Heartbeat | None:
    key = _SIGNS.format(rank)
    if not store.check([key]):
        return None
    record = json.loads(store.get(key))
    return Heartbeat(**record | {"at": Collectives.read(record["at"])})
