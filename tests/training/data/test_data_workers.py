"""A run that is ended from without does not wait at its exit for the processes that load its data."""

import multiprocessing
import os
import signal
import sys
import time

import pytest
from torch.utils.data import DataLoader

from megatron_cod.training.data import data_workers


def as_megatron_starts_it(_: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)


def kill_and_look_later(process) -> None:
    """Time for torch to notice, and to take a worker that was killed for an error of its own."""
    os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.2)


@pytest.mark.parametrize("end", [lambda: sys.exit(85), lambda: [].pop()], ids=["a stop", "an error"])
def test_loaders_end_with_the_run(end, monkeypatch):
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "kill", kill_and_look_later)
    before = signal.getsignal(signal.SIGCHLD)
    how = {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": "fork"}
    loader = iter(DataLoader(list(range(100)), worker_init_fn=as_megatron_starts_it, **how))
    try:
        assert next(loader) == 0
        workers = [child for child in multiprocessing.active_children() if child.daemon]
        assert len(workers) == 2
        with pytest.raises((SystemExit, IndexError)), data_workers.ended():
            end()
        assert not any(worker.is_alive() for worker in workers)
    finally:
        for worker in workers:
            if worker.is_alive():
                os.kill(worker.pid, signal.SIGKILL)
        signal.signal(signal.SIGCHLD, before)
