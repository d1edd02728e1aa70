"""The processes that load data end with the run."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from megatron_cod.training.loop.observers import Observer


class DataWorkers(Observer):
    """Ends them with the run."""

    def around_training(self) -> AbstractContextManager[None]:
        return ended()


@contextmanager
def ended() -> Iterator[None]:
    """Around the training: what it leaves of them, when a signal or an error ends it, is killed.

    Python would send them SIGTERM at its exit and then wait forever: Megatron has them take it for a notice, as ranks do.
    """
    try:
        yield
    finally:
        left = [child for child in multiprocessing.active_children() if child.daemon]
        if left:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises when a worker is killed
        for child in left:
            child.kill()
            child.join()
