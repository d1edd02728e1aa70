"""Recipes: YAML files of argument names, turned into flags that the command line can overrule."""

import argparse
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from reprlib import Repr
from typing import Any

import yaml

from megatron_cod.adaptations import cpu
from megatron_cod.args import MegatronArgs
from megatron_cod.errors import UserError
from megatron_cod.training.flags.data_section import KEY, data_flags

_ONCE = ("recipe", "unset", "dry_run", "override_scheme_check", "override_model_check", "rewind_to", "rewind_skip")
"""Arguments of one start, which a recipe that reproduces the run does not have."""


_COMMAND_LINE = ("recipe", "unset", "help", "help-megatron")
"""Flags that mean something on the command line alone."""
_SHOWN = Repr(maxstring=60, maxother=60, maxlong=60)


def without_machine(recipe: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The recipe without the flags of a run on CPU processes, where it holds them all, and then a line for the log.

    Earlier versions wrote them into the resolved arguments of such a run; on a GPU the run dies of them.
    """
    keys = [flag.removeprefix("--") for flag in cpu.DEFAULT_FLAGS if flag.startswith("--")]
    if not all(key in recipe for key in keys):
        return dict(recipe), ""
    line = f"the recipe is of a run on CPU processes: its {', '.join(keys)} are skipped, this machine chooses"
    return {key: value for key, value in recipe.items() if key not in keys}, line


def _flag_actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {
        option.removeprefix("--"): action
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    }


def recipe_flags(recipe: Mapping[str, Any], parser: argparse.ArgumentParser, unset: Iterable[str] = ()) -> list[str]:
    """The recipe as command-line flags, without the keys in ``unset``.

    ``true`` gives a bare flag, ``false`` and ``null`` none, a list several values; ``data_section`` explains the section
    ``data``. Raises UserError for an unknown key, naming the nearest real one, and for an ``unset`` key that the recipe
    does not have.
    """
    actions = _flag_actions(parser)
    dropped = {key.removeprefix("--").replace("_", "-") for key in unset}
    strangers = dropped - set(recipe)
    if strangers:
        raise UserError(f"--unset {', '.join(sorted(strangers))}: the recipe has no such key")
    flags: list[str] = []
    section = {} if KEY in dropped or recipe.get(KEY) is None else data_flags(recipe[KEY])
    doubled = sorted((set(section) & set(recipe)) - dropped)
    if doubled:
        raise UserError(f"recipe key {doubled[0]!r} says again what its section {KEY!r} says; keep one of them")
    for key, value in {**{key: value for key, value in recipe.items() if key != KEY}, **section}.items():
        if key in dropped:
            continue
        if key not in actions:
            near = get_close_matches(key, [*actions, KEY], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"unknown recipe key {_SHOWN.repr(key)}{hint}")
        if key in _COMMAND_LINE:
            raise UserError(f"recipe key {key!r} is a flag of the command line alone")
        if value is None:
            continue
        takes_value = actions[key].nargs != 0
        if isinstance(value, bool) and not takes_value:
            flags += [f"--{key}"] if value else _off(key, actions[key])
        elif not takes_value:
            raise UserError(f"recipe key {key!r} is a switch: true or false, not {_SHOWN.repr(value)}")
        elif isinstance(value, (list, tuple)):
            if not value and actions[key].nargs != "*":
                raise UserError(f"recipe key {key!r} needs a value")
            flags += [f"--{key}", *map(str, value)]
        elif isinstance(value, Mapping):
            raise UserError(f"recipe key {key!r} must hold one value or a list")
        else:
            # One word, so that a negative number is not treated as a flag.
            flags.append(f"--{key}={value}")
    return flags


def _off(key: str, action: argparse.Action) -> list[str]:
    """What turns a switch off that may be on by default: a switch with a ``--no-`` form."""
    return [f"--no-{key}"] if isinstance(action, argparse.BooleanOptionalAction) else []


def resolved_yaml(args: MegatronArgs, parser: argparse.ArgumentParser, always: Mapping[str, Any]) -> str:
    """Every argument that differs from its default, as a recipe that reproduces the run.

    args: the parsed command line before Megatron derives further fields from it. always: arguments to record with these
    values whether they are defaults or not.
    """
    by_destination: dict[str, tuple[str, argparse.Action]] = {}
    for key, action in _flag_actions(parser).items():
        by_destination.setdefault(action.dest, (key, action))
    resolved: dict[str, Any] = {name.replace("_", "-"): value for name, value in always.items()}
    for destination, value in vars(args).items():
        if destination not in by_destination or destination in _ONCE:
            continue
        key, action = by_destination[destination]
        if value == action.default or destination in always:
            continue
        if isinstance(action, argparse.BooleanOptionalAction):
            resolved[key.removeprefix("no-")] = value
        elif action.nargs == 0:
            # A destination can have an on- and an off-switch: the one whose constant gave this value is the key.
            key = next(k for k, a in _flag_actions(parser).items() if a.dest == destination and a.const == value)
            resolved[key] = True
        else:
            resolved[key] = _plain(value, action)
    return yaml.safe_dump(resolved, sort_keys=True)


def _plain(value: Any, action: argparse.Action) -> Any:
    """As it is written on the command line: members of enums by their names, and a list in one word where that is asked."""
    if isinstance(value, list | tuple):
        return [_plain(one, action) for one in value] if action.nargs else str(value).replace(" ", "")
    return value if type(value) in (bool, int, float, str) else getattr(value, "name", str(value))
