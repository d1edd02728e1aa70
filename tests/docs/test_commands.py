"""Programs and flags in the commands of README and docs exist. Other tests run most of these commands."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from megatron_cod.cli.main import COMMANDS
from tests.commands import launch_flags
from tests.conftest import ROOT
from tests.docs.pages import PAGES, commands

TAKE_MEGATRON_FLAGS = {"rehearse", "preflight", "compare_schemes", "benchmark", "inspect", "quickstart", "training"}
OTHERS = {"--nproc-per-node", "--standalone", "--clock", "--help"}
"""Flags of torchrun, and those that every program has."""


def constants(path) -> set[str]:
    """The strings of a source, and of our modules that it imports, one level deep."""
    tree = ast.parse(path.read_text())
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


CLI = ROOT / "megatron_cod" / "cli"


def source_of(program: Path) -> Path:
    """The file with a tool's flags: of a thin script the command that it starts."""
    named = re.search(r"from megatron_cod\.cli\.(\w+) import main", program.read_text())
    return CLI / f"{named[1]}.py" if named else program


@pytest.fixture(scope="module")
def known():
    return launch_flags()


def unknown_in(words: list[str], known: set[str]) -> list[str]:
    """What a command names and does not exist."""
    missing: list[str] = []
    flags = set(OTHERS)
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "-m" and following.startswith("megatron_cod"):
            if importlib.util.find_spec(following) is None:
                missing.append(following)
            flags |= known | {"--retries"}
            path = CLI / f"{following.removeprefix('megatron_cod.cli.')}.py"
            flags |= constants(path) if path.is_file() else set()
        elif word.startswith("tools/") and word.endswith(".py"):
            path = ROOT / word
            if not path.is_file():
                missing.append(word)
                continue
            path = source_of(path)
            flags |= constants(path) | {"--import"} | (known if path.stem in TAKE_MEGATRON_FLAGS else set())
        elif word == "megatron-cod" and following.startswith("-"):
            flags |= {"--version"}
        elif word == "megatron-cod":
            if following not in COMMANDS:
                missing.append(following)
                continue
            path = CLI / f"{COMMANDS[following].module or following.replace('-', '_')}.py"
            flags |= constants(path) | {"--import"} | (known if path.stem in TAKE_MEGATRON_FLAGS else set())
    if "--import" in words:  # a module of the user's, with flags of its own
        return missing
    given = [word.partition("=")[0] for word in words if word.startswith("--") and word != "--"]
    return missing + [flag for flag in given if flag not in flags]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_and_flags_exist(page, known):
    assert [(words[:4], found) for words in commands(page) if (found := unknown_in(words, known))] == []


def test_finds_unknown_programs_and_flags(known):
    command = ["torchrun", "-m", "megatron_cod.training.pretrain", "--train-iters", "2", "--no-such-flag"]
    assert unknown_in(command, known) == ["--no-such-flag"]
    assert unknown_in(["python", "tools/no_such.py"], known) == ["tools/no_such.py"]
    assert unknown_in(["python", "tools/preprocess_data.py", "--inputs"], known) == ["--inputs"]
    assert unknown_in(["megatron-cod", "trian"], known) == ["trian"]
    assert unknown_in(["megatron-cod", "generate", "--lr", "1"], known) == ["--lr"]
