"""Write the files that ``megatron-cod train --help`` and its like print: ``python -m megatron_cod.cli.training_help``."""

from __future__ import annotations

import contextlib
import io
import os

from megatron_cod.cli.training import ENTRIES, HELP

WIDTH = "80"
_NPROC = """
of the command megatron-cod:
  --nproc N                     processes to start on this machine: a number, or
                                gpu for one a GPU (default: this process alone);
                                several machines: megatron-cod init
"""


def help_of(command: str) -> str:
    """The help as it is built now."""
    os.environ["COLUMNS"] = WIDTH
    from megatron_cod.training.evaluation.flags import PROGRAM
    from megatron_cod.training.fine_tuning.task import task
    from megatron_cod.training.flags.parser import build_parser
    from megatron_cod.training.pretraining import TASK

    programs = {"train": TASK, "sft": task(), "evaluate": PROGRAM}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        build_parser(programs[command]).print_help()
    return f"{out.getvalue().rstrip()}\n{_NPROC}"


def main() -> None:
    HELP.mkdir(exist_ok=True)
    for command in ENTRIES:
        (HELP / f"{command}.txt").write_text(help_of(command))


if __name__ == "__main__":
    main()
