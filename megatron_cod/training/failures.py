"""How a distributed run ends on bad input: one clear line, from one rank, exit code not 0, no hang."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

# Long enough for the launcher to end the other ranks after rank 0 has spoken, short enough not to look like a hang.
_GRACE_SECONDS = 8.0


def one_line(error: BaseException) -> str:
    """The error's text on one line; Megatron's bare assertions get their source line instead of nothing."""
    text = " ".join(str(error).split())
    if text:
        return text
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = f" at {os.path.basename(frame.tb_frame.f_code.co_filename)}:{frame.tb_lineno}" if frame else ""
    return f"{type(error).__name__}{where}"


def fail(message: str, *, exit_code: int = 2) -> NoReturn:
    """Print ``error: message`` on rank 0 and end the process.

    The other ranks wait for the launcher to end them, so that rank 0 gets its line out first; a rank that is still
    alive after that saw something that rank 0 did not (a file missing on its node, say) and speaks for itself.
    """
    rank = int(os.environ.get("RANK", "0"))
    if rank != 0:
        time.sleep(_GRACE_SECONDS)
        message = f"rank {rank}: {message}"
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)
    # Not sys.exit: process groups and loader threads of a half-started run must not hold the exit up.
    os._exit(exit_code)


@contextmanager
def user_errors(*kinds: type[BaseException], explain: Callable[[BaseException], str] = one_line) -> Iterator[None]:
    """Turn the given exceptions into ``fail``; anything else is a bug of ours and keeps its traceback."""
    try:
        yield
    except kinds as error:
        fail(explain(error))
