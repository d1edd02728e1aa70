"""Run numbered tasks in this process or in workers, with results in order and progress reports."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from megatron_cod.errors import UserError

# What a task adds to as it goes: bytes of input, documents, tokens, bytes of text.
Report = Callable[[int, int, int, int], None]
Watch = Callable[[tuple[int, int, int, int]], None]
Task = Callable[[int, Report], Any]

# Tasks given out ahead of the one whose result is next, per worker: enough that none waits.
_AHEAD = 3
_SECONDS_BETWEEN_LOOKS = 0.1


def run_tasks(task: Task, numbers: Iterable[int], workers: int, watch: Watch) -> Generator[Any, None, None]:
    """`task(number, report)` for every number; results in order. `watch` gets the sums of all that was reported.

    With more than one worker, processes are forked, so that they have what the task needs already. Closing the
    generator ends the work. Raises what a task raises, the first in the order of numbers, and OSError when a worker
    process dies.
    """
    if workers == 1:
        yield from _alone(task, numbers, watch)
        return
    counters = multiprocessing.get_context("fork").RawArray("q", 4 * workers)
    places = multiprocessing.get_context("fork").Value("i", 0)
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), _start_worker, (task, counters, places, workers)
    )
    waiting: deque[Future[Any]] = deque()

    def poll() -> None:
        sums = [sum(counters[kind::4]) for kind in range(4)]
        watch((sums[0], sums[1], sums[2], sums[3]))

    try:
        for number in numbers:
            waiting.append(pool.submit(_work, number))
            if len(waiting) >= _AHEAD * workers:
                yield _result(waiting.popleft(), poll)
        while waiting:
            yield _result(waiting.popleft(), poll)
    except BrokenProcessPool as error:
        raise UserError("a worker process died, perhaps for lack of memory; try fewer --workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _alone(task: Task, numbers: Iterable[int], watch: Watch) -> Generator[Any, None, None]:
    sums = [0, 0, 0, 0]

    def report(*added: int) -> None:
        for kind, count in enumerate(added):
            sums[kind] += count
        watch((sums[0], sums[1], sums[2], sums[3]))

    for number in numbers:
        yield task(number, report)


def _result(future: Future[Any], poll: Callable[[], None]) -> Any:
    while True:
        try:
            return future.result(timeout=_SECONDS_BETWEEN_LOOKS)
        except TimeoutError:
            if future.done():  # the task's own
                raise
        finally:
            poll()


_worker: tuple[Task, Report]


def _start_worker(task: Task, counters: Any, places: Any, workers: int) -> None:
    global _worker
    # Ctrl-C reaches the whole group; the parent alone decides, and its workers print nothing.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with places.get_lock():
        place = places.value % workers
        places.value += 1

    def report(*added: int) -> None:
        for kind, count in enumerate(added):
            counters[4 * place + kind] += count

    _worker = (task, report)


def _end_with_parent() -> None:
    """A parent that is killed cannot stop its workers, and they would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(number: int) -> Any:
    task, report = _worker
    return task(number, report)
