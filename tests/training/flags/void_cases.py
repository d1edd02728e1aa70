"""For a row of flags that need a condition: arguments under which it acts, and under which it does not, by search."""

from __future__ import annotations

import copy
import itertools
from argparse import Action, ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Iterator, Sequence
from typing import Any

from megatron_cod.training.flags.void_row import Void

LISTS = {
    "cp_comm_type": (["a2a+p2p"],),
    "moe_router_load_balancing_type": (["aux_loss"], ["none"], ["sinkhorn"], ["quantile_balancing"]),
    "moe_aux_loss_coeff": ([0.0], [0.5]),
}
"""Values of lists that conditions know."""


class _Recorder:
    """Arguments that remember which of them were read."""

    def __init__(self, args: Namespace) -> None:
        self.args, self.read = args, set()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self.args, name)


def values_of(action: Action) -> list[Any]:
    """What the parser may make of a flag, the default last."""
    if isinstance(action, BooleanOptionalAction):
        return [not action.default, action.default]
    if action.nargs == 0:
        return [action.const, action.default]
    if action.choices and action.nargs is None:
        return [*(one for one in action.choices if one != action.default), action.default]
    values = {int: (0, 2, 7), float: (0.0, 0.5, 0.25)}.get(action.type, ("x", "y"))
    if action.nargs not in (None, "?"):
        values = tuple([one] for one in values)
    return [*LISTS.get(action.dest, ()), *values, action.default]


def _actions(parser: ArgumentParser) -> dict[str, list[Action]]:
    found: dict[str, list[Action]] = {}
    for action in parser._actions:
        if action.option_strings:
            found.setdefault(action.dest, []).append(action)
    return found


def flags_of(row: Void, parser: ArgumentParser) -> list[str]:
    """The arguments of a row that a program has."""
    return [name for name in _actions(parser) if row.has(name)]


def _variants(base: Namespace, reads: Sequence[str], choices: dict[str, list[Any]]) -> Iterator[Namespace]:
    for values in itertools.product(*(choices[name] for name in reads)):
        args = copy.copy(base)
        vars(args).update(zip(reads, values, strict=True))
        yield args


def situation(row: Void, name: str, acts: bool, parser: ArgumentParser, base: Namespace) -> Namespace | None:
    """Arguments with the flag given in which the row acts, or in which it does not; None where there are none."""
    actions = _actions(parser)
    choices = {dest: [v for action in found for v in values_of(action)] for dest, found in actions.items()}
    given = [value for action in actions[name] for value in values_of(action) if value != action.default]
    choices[name] = given
    base = copy.copy(base)
    setattr(base, name, given[0])
    reads: set[str] = set()
    while True:
        recorded: set[str] = set()
        for args in _variants(base, sorted(reads), choices):
            recorder = _Recorder(args)
            if bool(row.acts(recorder)) == acts:
                return args
            recorded |= recorder.read
        if recorded <= reads:
            return None
        reads |= recorded
