"""How a distributed run ends on bad input: one clear line, from one rank, exit code not 0, no hang."""

import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from torch.distributed import DistError

from megatron_cod import console

# Long enough for the launcher to end the other ranks after rank 0 has spoken, short enough not to look like a hang.
_GRACE_SECONDS = 8.0
USER_ERROR = 2
"""Exit code of a run that was started wrongly: starting it again would change nothing."""
MAY_PASS = 1
"""Exit code of a run that may go well when it is started again: another rank was lost, say."""


def this_rank() -> int:
    """This process's global rank, as the launcher set it; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def one_line(error: BaseException) -> str:
    """The error's text on one line; Megatron's bare assertions get the condition that failed instead of nothing."""
    text = " ".join(str(error).split())
    if text:
        return text
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return type(error).__name__
    condition = (frames[-1].line or "").removeprefix("assert ")
    return f"the arguments do not fit together, Megatron asks for: {condition}"


def may_pass(error: BaseException | None) -> bool:
    """Whether the run may go well when it is started again: the error, or what it came from, tells of a lost connection.

    A rank that was killed, or a machine that is gone, shows in those that talk to it: in set-up and in saves too, where
    the same exceptions come from wrong arguments and full disks. An error's own attribute ``may_pass`` decides first.
    """
    while error is not None:
        own = getattr(error, "may_pass", None)
        # gloo raises RuntimeError; where in its sources is all that tells it from others.
        if own is not None or isinstance(error, DistError) or "gloo/transport" in str(error):
            return own is not False
        error = error.__cause__ or error.__context__
    return False


class CommonError(ValueError):
    """An error that every rank raises with the same line, which names the rank it came from, where there is one."""


def _tell_launcher(message: str, speaks_in: float) -> None:
    """Leave the line where torchrun looks for the reason of a failed process (its ``ProcessFailure``).

    torchrun's own last line is that of the earliest time: the time is when this rank speaks, in ``speaks_in`` seconds.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with suppress(OSError), open(path, "w") as file:
            json.dump({"message": message, "timestamp": int(time.time() + speaks_in)}, file)


def fail(message: str, *, exit_code: int = USER_ERROR, common: bool = False) -> NoReturn:
    """Print ``error: message`` on rank 0 and end the process.

    The other ranks wait for the launcher to end them, so that rank 0 gets its line out first; a rank that is still
    alive after that saw something that rank 0 did not (a file missing on its node, say) and speaks for itself.
    common: the message is the same on all ranks, and no rank is to put its name before it.
    """
    rank = this_rank()
    if rank != 0 and not common:
        message = f"rank {rank} on {socket.gethostname()}: {message}"
    wait = _GRACE_SECONDS if rank != 0 else 0.0
    # In training it asks for a save, of which there is none now; the launcher is to see our code, not the signal.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(exit_code))
    if exit_code == USER_ERROR:
        _tell_launcher(message, wait)
    time.sleep(wait)
    console.speak(f"error: {message}")
    # Not sys.exit: process groups and loader threads of a half-started run must not hold the exit up.
    os._exit(exit_code)


@contextmanager
def user_errors(*kinds: type[BaseException], when: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Turn the given exceptions into ``fail`` while ``when()`` holds; anything else keeps its traceback.

    With MEGATRON_COD_TRACEBACK=1 in the environment every traceback is kept, for debugging Megatron's set-up.
    """
    try:
        yield
    except kinds as error:
        if os.environ.get("MEGATRON_COD_TRACEBACK") == "1" or not when():
            raise
        code = MAY_PASS if may_pass(error) else USER_ERROR
        fail(one_line(error), exit_code=code, common=isinstance(error, CommonError))
