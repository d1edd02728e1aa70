"""Stopping on a signal.

Megatron's own ``--exit-signal-handler``, which our runs have by default, finishes the step, saves on all ranks together
and leaves. Here SIGUSR1, which Slurm sends before a time limit, counts as SIGTERM, and a run that a signal ended shows it
by its exit code, so that a job script can distinguish it from one that is done.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from megatron_cod.args import MegatronArgs
from megatron_cod.checkpoint.events import Events
from megatron_cod.launch.scheduler import restarts
from megatron_cod.training.flags.batch_sizes import planned
from megatron_cod.training.loop.observers import Observer, Run

STOPPED = 85
"""Exit code of a run that a signal stopped after it saved: to be started again. Slurm's ``RequeueExit`` may name it."""


class UntilTraining(Observer):
    """Before the first step a SIGTERM ends the process as it does by default; from then on Megatron's handler has it.

    Megatron installs its handler when it parses the arguments. A rank that waits for others while the run is set up
    could then not be ended by the launcher.
    """

    def __init__(self) -> None:
        self._training = signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def training_begins(self) -> None:
        """The first step begins: the handler that was there is back."""
        signal.signal(signal.SIGTERM, self._training)


class Signals(Observer):
    """The events of a run's start and end, SIGUSR1 as SIGTERM, and exit code 85 after either."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def around_training(self) -> AbstractContextManager[None]:
        return watched(self._run.args, self._run.events, lambda: self._run.sigterm)


@contextmanager
def watched(args: MegatronArgs, events: Events, why_sigterm: Callable[[], str]) -> Iterator[None]:
    """Around the training: events of its start and end, SIGUSR1 as SIGTERM, and exit code 85 after either.

    why_sigterm: what a SIGTERM means on this rank, where the run may have sent it to itself.
    """
    received: list[str] = []

    def forward(number: int, _frame: Any) -> None:
        received.append(signal.Signals(number).name)
        signal.raise_signal(signal.SIGTERM)  # Megatron's from the first step; before, nothing is lost

    before = signal.signal(signal.SIGUSR1, forward)
    steps = planned(args)[0]
    events.add("start", restarts=restarts(), world_size=args.world_size, load=args.load, train_iters=steps)
    try:
        yield
    except SystemExit as end:
        if not end.code and _stopped():
            step = _step(args)
            events.add("stopped by a signal", signal=(received or [why_sigterm()])[0], step=step, saved=bool(args.save))
            sys.exit(STOPPED)
        events.add("end", code=end.code or 0, step=_step(args))
        raise
    except BaseException as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        events.add_first("failed", error=text, step=_step(args))
        raise
    finally:
        signal.signal(signal.SIGUSR1, before)
    events.add("finished", step=_step(args))


def _step(args: MegatronArgs) -> int:
    """Steps behind the weights: those of the checkpoint, or since then."""
    current = getattr(args, "curr_iteration", None)
    return int(getattr(args, "iteration", 0) or 0) if current is None else int(current) + 1


def _stopped() -> bool:
    """Whether a signal ended the run on any rank: Megatron asks all of them before it leaves."""
    from megatron.training.global_vars import get_signal_handler

    handler = get_signal_handler()
    return bool(handler is not None and any(handler.signals_received()))
