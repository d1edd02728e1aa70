"""How a distributed run ends on bad input: one line, from one rank, a nonzero exit code, no hang."""

import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from megatron_cod import console
from megatron_cod.console import this_rank
from megatron_cod.errors import USER_ERROR, CommonError, Phase, UserError, ending
from megatron_cod.launch import rank_logs

# Long enough for the launcher to end the other ranks after rank 0 has spoken, short enough not to look like a hang.
_GRACE_SECONDS = 8.0


def _report_to_launcher(message: str, delay: float) -> None:
    """Write the line where torchrun expects the reason of a failed process (its ``ProcessFailure``).

    torchrun's own last line is that of the earliest time: the time is when this rank prints it, after ``delay`` seconds.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with suppress(OSError), open(path, "w") as file:
            json.dump({"message": message, "timestamp": int(time.time() + delay)}, file)


def fail(message: str, *, exit_code: int = USER_ERROR, common: bool = False) -> NoReturn:
    """Print ``error: message`` on rank 0 and end the process.

    The other ranks wait for the launcher to end them, so that rank 0 gets its line out first; a rank that is still
    alive after that found something that rank 0 did not (for example, a file missing on its node) and prints it itself.
    common: the message is the same on all ranks, and no rank is to put its name before it.
    """
    rank = this_rank()
    if rank != 0 and not common:
        message = f"rank {rank} on {socket.gethostname()}: {message}"
    wait = _GRACE_SECONDS if rank != 0 else 0.0
    # In training it requests a save, which is not possible now; the launcher must get our code, not the signal.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(exit_code))
    if exit_code == USER_ERROR:
        _report_to_launcher(message, wait)
    time.sleep(wait)
    console.print_error(f"error: {message}")
    # Not sys.exit: process groups and loader threads of a half-started run must not hold the exit up.
    os._exit(exit_code)


@contextmanager
def one_line_endings(phase: Callable[[], Phase]) -> Iterator[None]:
    """End the process on an error as ``errors.ending`` decides for its phase at that time.

    What is a line for the user ends here, by ``fail``; its trace goes to the rank's log, where it keeps one. What is not is
    raised: a fault, and what goes wrong in training beside our own errors. ``rank_logs.report`` then reports it.
    With MEGATRON_COD_TRACEBACK=1 in the environment every error is raised, for debugging Megatron's set-up.
    """
    rank_logs.report_failures()
    try:
        yield
    except Exception as error:
        now = phase()
        found = ending(error, now)
        of_training = now is Phase.TRAINING and not isinstance(error, UserError)
        if found.is_fault or of_training or os.environ.get("MEGATRON_COD_TRACEBACK") == "1":
            raise
        if found.keeps_trace and rank_logs.is_redirected():
            traceback.print_exception(error)
        fail(found.line, exit_code=found.code, common=isinstance(error, CommonError))
