"""Write what ``megatron-cod train --help`` and its like print, and their flags.

python -m megatron_cod.cli.training_help
"""

from __future__ import annotations

import argparse
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


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of the run, as it is built now."""
    os.environ["COLUMNS"] = WIDTH
    from megatron_cod.training.evaluation.flags import PROGRAM
    from megatron_cod.training.fine_tuning.task import task
    from megatron_cod.training.flags.parser import build_parser
    from megatron_cod.training.pretraining import TASK

    programs = {"train": TASK, "sft": task(), "evaluate": PROGRAM}
    return build_parser(programs[command])


def help_of(command: str) -> str:
    """What ``--help`` prints."""
    out, parser = io.StringIO(), parser_of(command)
    with contextlib.redirect_stdout(out):
        parser.print_help()
    return f"{out.getvalue().rstrip()}\n{_NPROC}"


def all_flags() -> str:
    """Flags of all three, Megatron's too: ``early_checks.py`` reads them. --nproc is the command's own."""
    flags = {flag for command in ENTRIES for flag in parser_of(command)._option_string_actions if flag.startswith("--")}
    return "".join(f"{flag}\n" for flag in sorted(flags | {"--nproc", "--nproc-per-node"}))


def main() -> None:
    HELP.mkdir(exist_ok=True)
    for command in ENTRIES:
        (HELP / f"{command}.txt").write_text(help_of(command))
    (HELP / "flags.txt").write_text(all_flags())


if __name__ == "__main__":
    main()
