"""The parser is built once a process; what Megatron reads from the environment for it is that of the rank."""

import pytest

from megatron_cod.training.flags import parser
from megatron_cod.training.flags.parser import build_parser


def defaults() -> dict[str, object]:
    return {action.dest: action.default for action in build_parser()._actions}


@pytest.fixture
def built_elsewhere(monkeypatch):
    """The parser as a process that is no rank has built it, in a process that is rank 5 of 12."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(parser, "_BUILT", {})
    first = build_parser()
    for name, value in {"LOCAL_RANK": "3", "RANK": "5", "WORLD_SIZE": "12"}.items():
        monkeypatch.setenv(name, value)
    return first


def test_defaults_of_the_environment_are_those_of_the_rank(built_elsewhere, monkeypatch):
    """Compared with a parser built anew, so that another default of Megatron's from the environment is found."""
    found = defaults()
    assert build_parser() is built_elsewhere and found["local_rank"] == 3
    monkeypatch.setattr(parser, "_BUILT", {})
    assert found == defaults()


def test_detects_a_default_that_stays(built_elsewhere, monkeypatch):
    monkeypatch.setattr(parser, "_OF_ENVIRONMENT", {})
    found = defaults()
    monkeypatch.setattr(parser, "_BUILT", {})
    assert {name for name, value in defaults().items() if value != found[name]} == {
        "local_rank",
        "inprocess_active_world_size",
    }
