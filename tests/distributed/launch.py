"""Run a function in real processes that talk over gloo, and bring back what each returns.

Processes are forked from one server that has Megatron imported, so a launch costs a second instead of ten. Each worker
sets up RANK and friends as torchrun would. As there, the launcher holds the store of the rendezvous: a port that is only
looked up here and opened in a worker may be somebody else's by then.
"""

import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.distributed.started_with", "tests.distributed.preload"])
SHOW_STACKS = signal.SIGUSR2
"""What a rank that is still running at the end of its time gets: it writes the stack of each thread into its log."""


def open_store() -> Any:
    """The rendezvous of one launch, on a port of its own until the store is let go."""
    from torch.distributed import TCPStore

    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def _set_environment(wanted: dict[str, str]) -> None:
    """Give a rank the environment of its test: it is forked with that of the test in which the fork server started."""
    from tests.distributed.started_with import ENVIRONMENT

    for name in ENVIRONMENT.keys() - wanted.keys():
        os.environ.pop(name, None)
    os.environ.update({name: value for name, value in wanted.items() if ENVIRONMENT.get(name) != value})


def _enter(
    function: Callable[..., Any],
    rank: int,
    world: int,
    port: int,
    folder: str,
    arguments: tuple,
    environment: dict[str, str],
) -> None:
    # A group of its own: what a rank starts, such as the helpers of a save, is to end with it, also when it is killed.
    os.setpgid(0, 0)
    log = open(f"{folder}/{rank}.log", "w", buffering=1)  # noqa: SIM115
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    _set_environment(environment)
    faulthandler.register(SHOW_STACKS, file=log, all_threads=True)  # a rank may redirect its standard error
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    # Data loaders of this process fork, as they do under torchrun; a fork server's child would use the server.
    multiprocessing.set_start_method("fork", force=True)
    import torch

    torch.set_num_threads(1)
    try:
        outcome = ("ok", function(rank, *arguments))
    except SystemExit as end:
        outcome = ("error", f"exit code {end.code}") if end.code else ("ok", None)
    except BaseException as error:
        if sys.excepthook is not sys.__excepthook__:  # a rank's own, which its end would call
            sys.excepthook(type(error), error, error.__traceback__)
        outcome = ("error", f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    with open(f"{folder}/{rank}.part", "wb") as file:
        pickle.dump(outcome, file)
    os.rename(f"{folder}/{rank}.part", f"{folder}/{rank}.pickle")
    for helper in multiprocessing.active_children():
        helper.kill()
    # Leave at once: a peer may be stuck in a collective, and that must not keep this process.
    os._exit(0)


def _end(processes: list[Any]) -> None:
    """Kill ranks and all that they started."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()


def _stacks(processes: list[Any], folder: str) -> str:
    """Where the ranks that still run are: the end of their logs, with the stacks of their threads."""
    running = {rank: process for rank, process in enumerate(processes) if process.exitcode is None}
    for process in running.values():
        os.kill(process.pid, SHOW_STACKS)
    time.sleep(2)
    return "\n".join(f"--- the log of rank {rank} ends:\n{_log(folder, rank)[-8000:]}" for rank in running)


def _log(folder: str, rank: int) -> str:
    path = Path(folder, f"{rank}.log")
    return path.read_text(errors="replace") if path.exists() else ""


@dataclass(frozen=True)
class Ended:
    """How one rank of ``run_training_ranks`` ended: exit code (negative: killed) and its output."""

    code: int
    output: str


def _train(_rank: int, entry: str, flags: list[str], before: Callable[[], None] | None) -> None:
    import importlib
    import sys

    if before is not None:
        before()
    sys.argv = [entry, *flags]
    importlib.import_module(f"megatron_cod.training.{entry}").main()


def run_training_ranks(
    world: int,
    flags: list[str],
    timeout: float = 240.0,
    before: Callable[[], None] | None = None,
    entry: str = "pretrain",
) -> list[Ended]:
    """A training entry in ``world`` ranks, ended as torchrun would: one failure ends the others.

    before: called in each rank first, to put a mutant in.

    Unlike in ``run_ranks`` a failing rank is a result. AssertionError after ``timeout`` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = open_store()
        # Not daemons: data loaders start processes of their own.
        processes = [
            FORKS.Process(
                target=_enter, args=(_train, rank, world, store.port, folder, (entry, flags, before), dict(os.environ))
            )
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + timeout
        failed_at = None
        try:
            while any(process.exitcode is None for process in processes):
                if time.monotonic() > deadline:
                    raise AssertionError(f"still running after {timeout} s\n{_stacks(processes, folder)}")
                if any(process.exitcode for process in processes):
                    failed_at = failed_at or time.monotonic()
                    for process in processes:
                        if time.monotonic() - failed_at < 5:  # torchrun: 30
                            process.terminate()
                        else:
                            process.kill()
                time.sleep(0.02)
        finally:
            _end(processes)
        ended = []
        for rank, process in enumerate(processes):
            path = Path(folder, f"{rank}.pickle")
            state, value = pickle.loads(path.read_bytes()) if path.exists() else ("ok", None)
            ended.append(Ended(1 if state == "error" else process.exitcode or 0, _log(folder, rank) + (value or "")))
        return ended


def _skip_without_gpus(world: int) -> None:
    import pytest
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() < world:
        pytest.skip(f"needs {world} GPUs, there are {torch.cuda.device_count()}")


class WorkerError(AssertionError):
    """A rank failed; the text holds its traceback and the end of its log."""


def run_ranks(world: int, function: Callable[..., Any], *arguments: Any, timeout: float = 240.0) -> list[Any]:
    """Call ``function(rank, *arguments)`` in ``world`` processes; returns the results in rank order.

    Raises WorkerError with the first failing rank's traceback; the others are killed. Skips the test where each rank
    needs a GPU of its own and there are too few.
    """
    _skip_without_gpus(world)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store()
        processes = [
            FORKS.Process(
                target=_enter,
                args=(function, rank, world, store.port, folder, arguments, dict(os.environ)),
                daemon=True,
            )
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        results: dict[int, Any] = {}
        deadline = time.monotonic() + timeout
        try:
            while len(results) < world:
                for rank, process in enumerate(processes):
                    path = Path(folder, f"{rank}.pickle")
                    if rank in results:
                        continue
                    if path.exists():
                        state, value = pickle.loads(path.read_bytes())
                        if state == "error":
                            raise WorkerError(f"rank {rank}: {value}\n--- its log ends:\n{_log(folder, rank)[-3000:]}")
                        results[rank] = value
                    elif not process.is_alive() and not path.exists():
                        raise WorkerError(f"rank {rank} died with exit code {process.exitcode}")
                if time.monotonic() > deadline:
                    late = set(range(world)) - set(results)
                    raise WorkerError(f"no result after {timeout} s from ranks {late}\n{_stacks(processes, folder)}")
                time.sleep(0.05)
        finally:
            _end(processes)
        return [results[rank] for rank in range(world)]
