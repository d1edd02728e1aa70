"""Recipes with keys and values drawn at random, and damaged ones: accepted, or one line; never another exception."""

import datetime
import math
import random
from argparse import Action
from pathlib import Path

import pytest
import yaml

from megatron_cod.errors import UserError
from megatron_cod.rehearsal.launch import read_launch
from megatron_cod.training.flags.parser import build_parser
from megatron_cod.training.pretraining import TASK
from tests.conftest import ROOT

DEBUG = (ROOT / "recipes" / "debug.yaml").read_text()
SMALL = {**yaml.safe_load(DEBUG), "num-layers": 4, "hidden-size": 32, "ffn-hidden-size": 64, "mock-data": True}
VALUES = (
    *(0, 1, 2, 3, 64, -1, -7, 10**6, 10**30, 10**400, 0.0, 0.5, -0.5, 1e-30, 1e30, math.nan, math.inf, -math.inf),
    *(True, False, None, "", " ", "x", "abc def", "-", "--", "--lr", "1,2", "[1]*2", "([0]+[1])*2", "1e400", "true"),
    *("\u0663", "\u00e4", "\x00", "a" * 5000, "{}", "%s", "$HOME", "/", ".", "/dev/null", "fp32", "rope", "auto"),
    *([], [1], [1, "x"], [[1]], [None], [True], {}, {"a": 1}, datetime.date(2031, 1, 1), b"\x00\x01"),
)
OF_TYPE = {
    int: (0, 1, 2, 3, 7, 64, 10**6, 10**9, 10**12, 2**63, 10**30, 10**400, -1),
    float: (0.0, 1e-30, 1e-9, 0.1, 0.5, 1.0, 2.0, 100.0, 1e9, 1e30, 1e300, -1.0, 10**400),
    None: ("x", "", "a,b", "/dev/null", "none", "0", "1,0,0", "[1]", 3, ["x"], ["x", "y"]),
}
"""What is nearer to what a flag takes."""
MANY = 3000
FEW = 250


def ending_of(text: str, folder: Path, monkeypatch) -> str | None:
    """What the start says of a recipe; anything but a UserError is raised."""
    (folder / "recipe.yaml").write_text(text)
    try:
        read_launch(["--recipe", str(folder / "recipe.yaml")], 1)
    except UserError as error:
        return str(error)
    return None


def likely(action: Action | None) -> tuple:
    """Values that the flag may take."""
    if action is None:
        return VALUES
    if action.nargs == 0:
        return (True, False)
    if action.choices:
        return tuple(str(getattr(one, "name", one)) for one in action.choices)
    values = OF_TYPE.get(action.type, OF_TYPE[None])
    return values if action.nargs in (None, "?") else tuple([one] for one in values)


def drawn(draw: random.Random, keys: dict[str, Action | None]) -> dict:
    chosen = draw.sample(sorted(keys), draw.choice((1, 1, 2, 3)))
    kept = {key: value for key, value in SMALL.items() if draw.random() > 0.01}
    values = {key: draw.choice(VALUES if draw.random() < 0.3 else likely(keys[key])) for key in chosen}
    return {**kept, **values}


def damaged(draw: random.Random) -> str:
    """The text of a recipe with a few characters changed."""
    text = list(DEBUG)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(text))
        text[at] = draw.choice(
            ("", "\n", ":", "-", "[", "}", "&a ", "*a ", "!!python/object:x ", "\t", "'", "#", "9" * 40)
        )
    return "".join(text)


@pytest.fixture
def keys() -> dict[str, Action | None]:
    flags = {flag.removeprefix("--"): one for one in build_parser(TASK)._actions for flag in one.option_strings}
    return {**flags, **dict.fromkeys(("base", "data", "no_such_key", "Lr", ""))}


def tried(texts: list[str], folder: Path, monkeypatch) -> int:
    """How many were accepted."""
    monkeypatch.chdir(folder)
    accepted = 0
    for text in texts:
        try:
            said = ending_of(text, folder, monkeypatch)
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__}: {error} of\n{changes(text)}") from error
        assert said is None or (said and "\n" not in said and len(said) < 2000), (said, changes(text))
        accepted += said is None
    return accepted


def changes(text: str) -> str:
    known = set(yaml.safe_dump(SMALL).splitlines()) | set(DEBUG.splitlines())
    return "\n".join(line[:300] for line in text.splitlines() if line not in known)


@pytest.mark.slow
@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_recipes_with_any_keys_and_values_end_in_one_line_or_are_accepted(count, keys, tmp_path, monkeypatch):
    draw = random.Random(count)
    texts = [yaml.safe_dump(drawn(draw, keys)) for _ in range(count)]
    assert 0.05 * count < tried(texts, tmp_path, monkeypatch) < 0.6 * count


@pytest.mark.parametrize("count", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_damaged_recipes_end_in_one_line_or_are_accepted(count, tmp_path, monkeypatch):
    draw = random.Random(count)
    assert tried([damaged(draw) for _ in range(count)], tmp_path, monkeypatch) > 0
