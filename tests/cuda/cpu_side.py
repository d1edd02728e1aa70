"""A process beside the tests that has no emulated device: what it calls runs as on a machine without a GPU."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from tests.conftest import ROOT
from tests.gpu_emulation.build import without_emulation


@cache
def _server() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.cuda.cpu_side"]
    environment = without_emulation(os.environ)
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def call_on_cpu(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` in that process; an exception comes back as it was raised."""
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    pickle.dump((function, arguments), server.stdin)
    server.stdin.flush()
    succeeded, value = pickle.load(server.stdout)
    if succeeded:
        return value
    raise value


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed must not come between the answers
    while True:
        try:
            function, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = (True, function(*arguments))
        except Exception as error:
            answer = (False, error)
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _serve()
