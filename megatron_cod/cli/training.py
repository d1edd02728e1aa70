"""``megatron-cod train``, ``sft`` and ``evaluate``: this process becomes the run, or torchrun with its ranks.

Each is a module of ``megatron_cod.training``, which torchrun and srun can start as well. Their helper processes import the
main module again, so this one is replaced by the module instead of calling it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import NoReturn

from megatron_cod.cli.early_checks import HELP, check_early
from megatron_cod.errors import UserError, run_tool
from megatron_cod.shipped import find

ENTRIES = {"train": "pretrain", "sft": "sft", "evaluate": "evaluate"}
"""Command -> module of ``megatron_cod.training``."""


def _refuse(message: str) -> NoReturn:
    raise UserError(message)


def _parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = _refuse  # type: ignore[method-assign]
    parser.add_argument("--nproc", "--nproc-per-node")
    return parser.parse_known_args(list(words))


def _check_processes(text: str) -> None:
    if text not in ("auto", "gpu", "cpu") and not (text.isdigit() and int(text) > 0):
        raise UserError(f"--nproc {text!r} is neither a number of processes nor auto, gpu or cpu")
    if "RANK" in os.environ:
        raise UserError("--nproc starts processes itself; under torchrun or srun omit it")


def command_line(entry: str, words: Sequence[str]) -> list[str]:
    """What to run after ``python``, for a command's words."""
    own, flags = _parse(words)
    module = ["-m", f"megatron_cod.training.{entry}", *flags]
    if own.nproc is None:
        return module
    _check_processes(own.nproc)
    if own.nproc == "1":
        return module
    return ["-m", "megatron_cod.training.torchrun", "--standalone", "--nproc-per-node", own.nproc, *module]


def _names(words: Sequence[str], flag: str) -> bool:
    return any(word == flag or word.startswith(f"{flag}=") for word in words)


def _recipe_saves(words: Sequence[str]) -> bool:
    """Whether the recipe names a folder to save in. One that cannot be read is left to the run, which says so."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--recipe")
    try:
        recipe = parser.parse_known_args(list(words))[0].recipe
        return recipe is not None and "\nsave:" in "\n" + find(recipe).read_text()
    except (argparse.ArgumentError, UserError, OSError, UnicodeDecodeError):
        return True


def log_flags(name: str, words: Sequence[str]) -> list[str]:
    """A folder for the ranks' output where there is no --save: Megatron prints some 800 lines, the console has ours."""
    asked = any(_names(words, flag) for flag in ("--save", "--rank-log-dir", "--dry-run", "--help-megatron"))
    if name == "evaluate" or asked or "RANK" in os.environ or _recipe_saves(words):
        return []
    return ["--rank-log-dir", tempfile.mkdtemp(prefix="megatron_cod-")]


def main() -> None:
    name = sys.argv[0].split()[-1]
    words = sys.argv[1:]
    if words in (["--help"], ["-h"]):
        print((HELP / f"{name}.txt").read_text(), end="")
        return
    if name == "train" and not words:
        raise UserError("nothing to train: give --recipe NAME (megatron-cod recipes list); --help lists the flags")
    check_early(words)
    command = [sys.executable, *command_line(ENTRIES[name], words)]
    logs = log_flags(name, words)
    if logs:
        print(f"no --save: nothing is kept but the output of each process, in {logs[1]}")
    command += logs
    if "megatron_cod.training.torchrun" in command:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's default, of which it would print a banner
    sys.stdout.flush()
    os.execv(command[0], command)


if __name__ == "__main__":
    run_tool(main)
