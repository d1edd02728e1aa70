"""``megatron-cod COMMAND ...``: the table of commands, and how one is started.

A command is a module of this folder with a function ``main``, which reads ``sys.argv``.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from difflib import get_close_matches

import megatron_cod
from megatron_cod.errors import UserError, run_tool


@dataclass(frozen=True)
class Command:
    """A row of the table."""

    summary: str
    module: str = ""
    """Of this folder; default: the command's name."""


GROUPS: dict[str, dict[str, Command]] = {
    "first steps": {
        "quickstart": Command("train a small model three times on text that comes with the package, and compare"),
        "recipes": Command("list the recipes of the package, or print one"),
        "init": Command("copy the launch scripts (one machine, several, Slurm, Docker) into a folder"),
    },
    "data": {
        "tokenizer": Command("train a SentencePiece tokenizer"),
        "preprocess": Command("turn text into token files"),
        "inspect": Command("show what a dataset holds, and what training is fed at a step"),
    },
    "training": {
        "train": Command("pretrain a model", "training"),
        "sft": Command("fine-tune a checkpoint on conversations", "training"),
        "evaluate": Command("perplexity and bits per byte of a checkpoint", "training"),
        "rehearse": Command("print layers, memory and bubble of every rank of a large job, before it starts"),
        "preflight": Command("check the machines of a job"),
        "benchmark": Command("time training steps"),
    },
    "checkpoints and models": {
        "convert": Command("export a checkpoint to Hugging Face, or import a model"),
        "generate": Command("text from a checkpoint or an exported model"),
        "analyze": Command("measure what each block of a model does"),
        "prune": Command("remove or merge blocks of a model"),
    },
    "comparisons": {
        "compare-runs": Command("compare two runs by step, tensor and layer"),
        "compare-schemes": Command("train norm schemes on the same tokens"),
        "study": Command("compare schemes at tuned learning rates"),
    },
}
COMMANDS = {name: row for rows in GROUPS.values() for name, row in rows.items()}


def help_text() -> str:
    """The help of the whole command."""
    lines = [f"usage: megatron-cod COMMAND [flags]\n\n{megatron_cod.__doc__}"]
    for title, rows in GROUPS.items():
        lines += [f"\n{title}:", *(f"  {name:17}{row.summary}" for name, row in rows.items())]
    lines.append("\nmegatron-cod COMMAND --help shows the flags of one; megatron-cod --version shows the version")
    return "\n".join(lines)


def _command(name: str) -> Command:
    if name in COMMANDS:
        return COMMANDS[name]
    near = get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
    raise UserError(f"unknown command {name!r}; {hint}")


def run() -> None:
    """Run the command line; raises what the command raises."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return
    if words[0] == "--version":
        print(f"megatron-cod {megatron_cod.__version__}")
        return
    module = _command(words[0]).module or words[0].replace("-", "_")
    sys.argv = [f"megatron-cod {words[0]}", *words[1:]]
    importlib.import_module(f"megatron_cod.cli.{module}").main()


def main() -> None:
    """The entry of the console script."""
    run_tool(run)


if __name__ == "__main__":
    main()
