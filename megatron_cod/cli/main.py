"""``megatron-cod COMMAND ...``: the table of commands, and how one is started.

A command is a module of this folder with a function ``main``, which reads ``sys.argv``.
"""

from __future__ import annotations

import importlib
import importlib.util
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
    extra: str = ""
    """Which of the package's extras it needs (pyproject.toml)."""


GROUPS: dict[str, dict[str, Command]] = {
    "first steps": {
        "quickstart": Command(
            "train small models at two learning rates on text that comes with the package, and compare",
            extra="analysis",
        ),
        "recipes": Command("list the recipes of the package, or print one"),
        "init": Command("copy the launch scripts (one machine, several, Slurm, Docker) into a folder"),
        "completion": Command("print a script that completes commands and flags in bash, zsh or tcsh", extra="data"),
    },
    "data": {
        "tokenizer": Command("train a SentencePiece tokenizer", extra="data"),
        "preprocess": Command("turn text into token files", extra="data"),
        "inspect": Command("show what a dataset holds, and what training is fed at a step", extra="train"),
    },
    "training": {
        "train": Command("pretrain a model", "training", extra="train"),
        "sft": Command("fine-tune a checkpoint on conversations", "training", extra="train"),
        "evaluate": Command("perplexity and bits per byte of a checkpoint", "training", extra="train"),
        "rehearse": Command(
            "print layers, memory and bubble of every rank of a large job, before it starts", extra="train"
        ),
        "preflight": Command("check the machines of a job", extra="train"),
        "benchmark": Command("time training steps", extra="train"),
    },
    "checkpoints and models": {
        "convert": Command("export a checkpoint to Hugging Face, or import a model", extra="hf"),
        "generate": Command("text from a checkpoint or an exported model", extra="hf"),
        "analyze": Command("measure what each block of a model does", extra="analysis"),
        "merge": Command("average the last checkpoints of a run", extra="hf"),
        "prune": Command("remove or merge blocks of a model", extra="analysis"),
    },
    "comparisons": {
        "compare-runs": Command("compare two runs by step, tensor and layer", extra="train"),
        "compare-schemes": Command("train norm schemes on the same tokens", extra="analysis"),
        "study": Command("compare schemes at tuned learning rates", extra="analysis"),
    },
}
PACKAGES = {
    "data": ("orjson", "yaml", "rich", "sentencepiece", "shtab", "tokenizers", "transformers", "zstandard"),
    "train": ("torch", "megatron.training", "omegaconf", "psutil", "tensorboard"),
    "hf": ("safetensors",),
    "analysis": ("matplotlib",),
}
"""Extra -> what is imported of it; each builds on those before it."""
COMMANDS = {name: row for rows in GROUPS.values() for name, row in rows.items()}


def help_text() -> str:
    """The help of the whole command."""
    about = (megatron_cod.__doc__ or "").splitlines()[0]
    lines = [f"usage: megatron-cod COMMAND [flags]\n\n{about}"]
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


def missing_package(extra: str) -> str | None:
    """The first package that an extra, or one that it builds on, lacks here."""
    extras = list(PACKAGES)
    names = [name for one in extras[: extras.index(extra) + 1] for name in PACKAGES[one]] if extra else []
    return next((name for name in names if not _is_installed(name)), None)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package above it
        return False


def run() -> None:
    """Run the command line; raises what the command raises."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return
    if words[0] == "--version":
        print(f"megatron-cod {megatron_cod.__version__}")
        return
    row = _command(words[0])
    module = row.module or words[0].replace("-", "_")
    missing = None if "--help" in words or "-h" in words else missing_package(row.extra)
    if missing:
        raise UserError(
            f"megatron-cod {words[0]} needs the package {missing}: pip install 'megatron-cod[all]' (or only [{row.extra}])"
        )
    sys.argv = [f"megatron-cod {words[0]}", *words[1:]]
    importlib.import_module(f"megatron_cod.cli.{module}").main()


def main() -> None:
    """The entry of the console script."""
    run_tool(run)


if __name__ == "__main__":
    main()
