"""Print a script that completes commands, flags and recipes in a shell.

    megatron-cod completion bash > ~/.local/share/bash-completion/completions/megatron-cod
    megatron-cod completion zsh > ~/.zfunc/_megatron-cod      (a folder of $fpath)

Print it again after an upgrade.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from megatron_cod.cli.early_checks import known_flags
from megatron_cod.cli.parsing import Parser
from megatron_cod.cli.training import ENTRIES
from megatron_cod.errors import run_tool
from megatron_cod.shipped import RECIPES, names_in

SHELLS = ("bash", "zsh", "tcsh")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("shell", choices=SHELLS)
    return parser


def _training_parser() -> argparse.ArgumentParser:
    """The flags of ``train``, ``sft`` and ``evaluate``, without torch and Megatron."""
    parser = argparse.ArgumentParser()
    for flag in sorted(known_flags() - {"--help", "-h", "--recipe"}):
        parser.add_argument(flag)
    parser.add_argument("--recipe", choices=names_in(RECIPES))
    return parser


def parser_of(command: str, module: str) -> argparse.ArgumentParser:
    """The parser of a command of the table."""
    if command in ENTRIES:
        return _training_parser()
    found: argparse.ArgumentParser = importlib.import_module(f"megatron_cod.cli.{module}").build_parser()
    return found


def script(shell: str) -> str:
    """The completion script for one of ``SHELLS``."""
    import shtab

    from megatron_cod.cli.main import COMMANDS

    whole = argparse.ArgumentParser(prog="megatron-cod")
    whole.add_argument("--version", action="store_true")
    commands = whole.add_subparsers()
    for name, row in COMMANDS.items():
        parser = parser_of(name, row.module or name.replace("-", "_"))
        for action in parser._actions:
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        parser.prog = f"megatron-cod {name}"
        commands.add_parser(name, help=row.summary, parents=[parser], add_help=False)
    return str(shtab.complete(whole, shell))


def main() -> None:
    args = build_parser().parse_args()
    print(script(args.shell))


if __name__ == "__main__":
    run_tool(main)
