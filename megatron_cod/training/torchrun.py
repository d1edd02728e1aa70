"""torchrun, with exit codes for what to do next: ``python -m megatron_cod.training.torchrun``, then torchrun's own flags.

Before it starts, HEAD's name is resolved and its port tried: a wrong name or a port in use is reported at once. The other
machines wait for HEAD, and all of them for each other, for ``--rdzv-conf join_timeout=SECONDS``. A run that
was started wrongly (exit code 2) or stopped by a signal (85) is not started again; after any other failure all ranks are,
``--max-restarts`` times. The last line has the reason, and the exit code is the failed rank's, where a rank failed.
SIGUSR1 is passed to the ranks as SIGTERM is, and when this process is killed its ranks are too.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, NoReturn

from torch.distributed import DistError, run
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
)
from torch.distributed.launcher import api as launcher

from megatron_cod.errors import USER_ERROR, UserError
from megatron_cod.launch import helper_processes, torchrun_flags
from megatron_cod.launch.rendezvous import Head
from megatron_cod.training.faults.signals import STOPPED

_HEAD_GONE = (RendezvousClosedError, RendezvousConnectionError, DistError)


class Agent(LocalElasticAgent):
    """torchrun's agent, which starts nothing again that would end the same way, and hears its ranks when HEAD is gone."""

    reason: str | None = None
    """The error of a rank here that was still waiting for rank 0's line when the rendezvous ended."""

    def _invoke_run(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._invoke_run(*args, **kwargs)
        except _HEAD_GONE:
            files = self._pcontext.error_files.values() if self._pcontext else ()
            Agent.reason = next((message for message in map(_message, files) if message), None)
            raise

    def _monitor_workers(self, worker_group: Any) -> Any:
        result = super()._monitor_workers(worker_group)
        if any(failure.exitcode in (USER_ERROR, STOPPED) for failure in result.failures.values()):
            self._remaining_restarts = 0
        return result


def _message(path: str) -> str | None:
    """What launch/exit_codes.py left for the launcher."""
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None
    return found["message"] if isinstance(found.get("message"), str) else None


def _rank_ended(error: ChildFailedError, restarts: int) -> tuple[int, str]:
    rank, failure = error.get_first_failure()
    where = f"rank {rank} on {socket.gethostname()}"
    if failure.exitcode == STOPPED:
        return STOPPED, f"{where} was stopped by a signal, after saving; the same command resumes from there"
    if failure.exitcode == USER_ERROR:  # its message is the one that launch/exit_codes.py left for us
        return USER_ERROR, str(failure.message)
    how = f"got {failure.signal_name()}" if failure.exitcode < 0 else f"ended with exit code {failure.exitcode}"
    line = f"{where} {how}, and {restarts} restarts are used up; its output is above, or in its file of SAVE/logs"
    return (128 - failure.exitcode if failure.exitcode < 0 else failure.exitcode), line


def ending(error: BaseException, args: Namespace, head: Head | None) -> tuple[int, str]:
    """Exit code and last line for what torchrun raised. args: torchrun's. head: None on one machine."""
    if isinstance(error, UserError):
        return USER_ERROR, str(error)
    if isinstance(error, ChildFailedError):
        return _rank_ended(error, args.max_restarts)
    if isinstance(error, SignalException):
        name = signal.Signals(error.sigval).name
        return 128 + error.sigval, f"ended by {name}; the same command resumes from the newest checkpoint"
    if isinstance(error, _HEAD_GONE) and Agent.reason:
        return USER_ERROR, Agent.reason
    if isinstance(error, RendezvousClosedError):
        return 1, "another machine ended the run; its last line has the reason"
    assert head is not None
    if isinstance(error, RendezvousTimeoutError):
        came = ", ".join(head.machines())
        return 1, f"fewer than {args.nnodes} machines were at {head} within {head.seconds:.0f} s; there came {came}"
    return (
        1,
        f"HEAD is gone: {head} does not answer any more; if its last line is no reason, start the command again on all",
    )


def _fail(code: int, line: str) -> NoReturn:
    sys.stdout.flush()
    print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(code)  # threads of a rendezvous that failed must not hold the exit up


def main() -> None:
    """Run torchrun's command line."""
    args, head = Namespace(), None
    os.environ[helper_processes.LAUNCHER] = str(os.getpid())
    launcher.LocalElasticAgent = Agent  # type: ignore[misc] # the name by which torchrun makes its agent
    try:
        args = torchrun_flags.parse(sys.argv[1:])
        if args.rdzv_backend == "c10d" and args.rdzv_endpoint and not args.standalone:
            head = Head(args)
            head.reach()
        run.run(args)
    except (
        *(UserError, ChildFailedError, SignalException),
        *(RendezvousClosedError, RendezvousTimeoutError, RendezvousConnectionError, DistError),
    ) as error:
        _fail(*ending(error, args, head))


if __name__ == "__main__":
    main()
