"""Programs and flags in the commands of README and docs exist. Other tests run most of these commands."""

import ast
import importlib.util

import pytest

from megatron_cod.training.flags.parser import build_parser
from tests.conftest import ROOT
from tests.docs.pages import PAGES, commands

TAKE_MEGATRON_FLAGS = {"rehearse", "preflight", "compare_schemes", "benchmark", "inspect_data"}
OTHERS = {"--nproc-per-node", "--standalone", "--clock", "--help"}
"""Flags of torchrun, and those that every program has."""


def constants(path) -> set[str]:
    """The strings of a source, and of our modules that it imports, one level deep."""
    tree = ast.parse(path.read_text())
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def launch_flags() -> set[str]:
    from megatron_cod.training.evaluation.flags import PROGRAM
    from megatron_cod.training.fine_tuning.task import task
    from megatron_cod.training.pretraining import TASK

    programs = (TASK, task(), PROGRAM)
    return {flag for one in programs for action in build_parser(one)._actions for flag in action.option_strings}


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
        elif word.startswith("tools/") and word.endswith(".py"):
            path = ROOT / word
            if not path.is_file():
                missing.append(word)
                continue
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
