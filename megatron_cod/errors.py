"""How programs end: a user error is one line, a fault of this package keeps its traceback.

``ending`` is the one place that tells them apart. The tools end by it (``run_tool``), and training, evaluation and the
rehearsal's ranks (``launch/exit_codes.py``). Imports nothing but the standard library and
``refusals.py``, so that all code can raise these.
"""

from __future__ import annotations

import dis
import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from typing import NoReturn

from megatron_cod import refusals

USER_ERROR = 2
"""Exit code of what was started wrongly: starting it again would change nothing."""
MAY_PASS = 1
"""Exit code of a run that may go well when it is started again, as when another rank was lost. Also that of a fault."""
INTERRUPTED = 130
_PIPE_CLOSED = 141
REPORT = "please report it, with the traceback (see CONTRIBUTING.md)"


class UserError(ValueError):
    """An error meant for the user: its text is the one line that they see, and the exit code is 2."""


class CommonError(UserError):
    """An error that every rank raises with the same line, which names the rank it came from, where there is one.

    may_pass: whether the run may go well when it is started again, as after a fault of one rank; None: see ``may_pass``.
    """

    may_pass: bool | None = None

    def __init__(self, text: str, may_pass: bool | None = None) -> None:
        super().__init__(text)
        if may_pass is not None:
            self.may_pass = may_pass


class Phase(Enum):
    """What a process is at."""

    TOOL = "a tool"
    START = "a run, up to its validated arguments"
    SET_UP = "a run, up to its first step"
    TRAINING = "a run, from its first step on"


@dataclass(frozen=True)
class Ending:
    """How a process ends on an error."""

    code: int
    line: str
    """For the console."""
    keeps_trace: bool = True
    """Whether the traceback goes to the rank's log, where there is one."""
    is_fault: bool = False
    """Whether it is a fault of ours, or of what we build on: its traceback is always kept."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` with the nearest of the known words, or nothing."""
    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


@contextmanager
def bad_input(what: object) -> Iterator[None]:
    """Around what reads a file of the user's: what is wrong with its content becomes a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{what} cannot be read: {type(error).__name__}: {one_line(error)[:200]}") from error


def one_line(error: BaseException) -> str:
    """The error's text on one line; Megatron's bare assertions get the condition that failed instead of nothing."""
    text = refusals.explain(error) or " ".join(str(error).split())
    if text:
        return text
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return type(error).__name__
    condition = (frames[-1].line or "").removeprefix("assert ")
    return f"the arguments do not fit together, Megatron requires: {condition}"


def _is_a(error: BaseException, name: str) -> bool:
    """Whether an error is of torch's class of that name, without importing torch."""
    return any(kind.__name__ == name and kind.__module__.startswith("torch") for kind in type(error).__mro__)


def may_pass(error: BaseException | None) -> bool:
    """Whether the run may go well when it is started again: the error, or its cause, is a lost connection.

    A rank that was killed, or a machine that is gone, shows in those that talk to it: in set-up and in saves too, where
    the same exceptions come from wrong arguments and full disks. An error's own attribute ``may_pass`` decides first.
    """
    while error is not None:
        own = getattr(error, "may_pass", None)
        # gloo raises RuntimeError; only the place in its sources distinguishes it from others.
        if own is not None or _is_a(error, "DistError") or "gloo/transport" in str(error):
            return own is not False
        error = error.__cause__ or error.__context__
    return False


def _passed(error: BaseException) -> list[tuple[str, str]]:
    """(top-level package, instruction) of the frames that it passed, the innermost last."""
    trace, found = error.__traceback__, []
    while trace is not None:
        frame = trace.tb_frame
        package = str(frame.f_globals.get("__name__")).split(".")[0]
        found.append((package, dis.opname[frame.f_code.co_code[trace.tb_lasti]]))
        trace = trace.tb_next
    return found


def refused_by_megatron(error: BaseException, phase: Phase) -> bool:
    """Whether Megatron refuses what it was given, as it does for arguments that do not fit together.

    In set-up the innermost frame must be Megatron's own. While it parses and validates arguments also what it calls then,
    such as an enumeration that has no such member: of Megatron's frames and ours, the innermost must be Megatron's.
    A RuntimeError counts if it comes from a ``raise``: torch's operators have others, which are no refusals. In set-up
    Transformer Engine's errors count as well: its kernels do not run yet, and it names what the machine lacks.
    """
    if isinstance(error, UserError) or not isinstance(error, AssertionError | ValueError | RuntimeError):
        return False
    passed = _passed(error)
    if phase is Phase.START:
        passed = [one for one in passed if one[0] in ("megatron", "megatron_cod")]
    package, instruction = passed[-1] if passed else ("", "")
    if package == "transformer_engine":
        return phase is Phase.SET_UP
    return package == "megatron" and (not isinstance(error, RuntimeError) or instruction == "RAISE_VARARGS")


@contextmanager
def megatron_refusals(phase: Phase) -> Iterator[None]:
    """Around Megatron's own reading of the arguments, or its set-up: what it refuses becomes a UserError."""
    try:
        yield
    except Exception as error:
        if not refused_by_megatron(error, phase):
            raise
        raise UserError(one_line(error)) from error


_OF_FILES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EPIPE)
"""What reading and writing an open file may end with; the error then names no file."""


def of_files(error: BaseException) -> bool:
    """Whether the operating system refuses a file, which the user can fix."""
    return isinstance(error, OSError) and (error.filename is not None or error.errno in _OF_FILES)


def _text_of_files(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else one_line(error)


def _as_fault(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300] or _failed_condition(error)
    return (
        f"{type(error).__name__}: {text}; this is a fault of megatron_cod, or of what it is built on, and not of the "
        f"command: {REPORT}"
    )


def _failed_condition(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].line} ({frames[-1].filename}:{frames[-1].lineno})" if frames else "no reason given"


def ending(error: BaseException, phase: Phase) -> Ending:
    """How a process in this phase ends on an error; the first kind that fits counts."""
    lost = phase is not Phase.TOOL and may_pass(error)
    if isinstance(error, KeyboardInterrupt):
        return Ending(INTERRUPTED, "interrupted", keeps_trace=phase is not Phase.TOOL)
    if isinstance(error, UserError):
        return Ending(MAY_PASS if lost else USER_ERROR, one_line(error), keeps_trace=error.__cause__ is not None)
    if lost:
        return Ending(MAY_PASS, one_line(error))
    if phase in (Phase.START, Phase.SET_UP) and refused_by_megatron(error, phase):
        return Ending(USER_ERROR, one_line(error))
    if isinstance(error, OSError) and of_files(error):
        # Once a run has trained, its files were there: a file system that did not answer may do so again.
        return Ending(MAY_PASS if phase is Phase.TRAINING else USER_ERROR, _text_of_files(error))
    if _is_a(error, "OutOfMemoryError"):
        return Ending(USER_ERROR, f"the device is out of memory: {one_line(error)}")
    return Ending(MAY_PASS, _as_fault(error), is_fault=True)


def run_tool(main: Callable[[], None]) -> NoReturn:
    """Run `main` and exit: 0 when it returns, 2 with one line for what the user can fix, 130 when interrupted.

    A fault keeps its traceback, with a line below it; the exit code is then 1.
    """
    try:
        main()
        sys.stdout.flush()  # a full disk shows here
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read has seen enough, as in "| head"
        sys.exit(_PIPE_CLOSED)
    except (Exception, KeyboardInterrupt) as error:
        found = ending(error, Phase.TOOL)
        if found.is_fault:
            traceback.print_exc()
        prefix = "" if found.code == INTERRUPTED else "fault: " if found.is_fault else "error: "
        print(prefix + " ".join(found.line.split()), file=sys.stderr)
        sys.exit(found.code)
    sys.exit(0)
