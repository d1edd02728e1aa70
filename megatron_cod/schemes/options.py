"""Options of norm schemes: fields of dataclasses, each of which is the command-line flag of the same name.

A scheme's row names its own dataclass; ``CommonOptions`` go with every scheme. The flags and their help are made from the
fields, so that a scheme outside the package gets its flags like those of the package.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


def option(
    default: Any = None,
    *,
    help: str,
    type: Callable[[str], Any] | None = None,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    negative: bool = False,
) -> Any:
    """A field of an options dataclass; ``default`` is its value where the flag is not given.

    The keywords are those of ``argparse.ArgumentParser.add_argument``. A default of False makes a switch. negative:
    whether a number may be below 0.
    """
    flag = {"help": help, "type": type, "choices": choices, "metavar": metavar}
    given_keys = {key: value for key, value in flag.items() if value is not None}
    return field(default=default, metadata={"flag": given_keys, "negative": negative})


@dataclass(frozen=True)
class NoOptions:
    """Of a scheme that has none."""


@dataclass(frozen=True)
class CommonOptions:
    """Options that go with every scheme."""

    gamma_init: bool = option(
        False,
        help="start the gammas of the input norms at 1/sqrt(l): another method than lns, and stacks with any scheme",
    )
    geglu: bool = option(
        False, help="gate the MLPs of --swiglu with gelu in its tanh form instead of silu, as Gemma does"
    )
    residual_warmup_steps: int | None = option(
        help="ProRes (arXiv 2603.05369): at step t the branches of block l count min(t / (l * T), 1); stacks with any "
        "scheme",
        type=int,
        metavar="T",
    )


def flag_of(name: str) -> str:
    """``lns_exponent`` -> ``--lns-exponent``."""
    return "--" + name.replace("_", "-")


def may_be_negative(kind: type) -> list[str]:
    """The fields of an options dataclass whose numbers may be below 0."""
    return [one.name for one in fields(kind) if one.metadata["negative"]]


def names(kind: type) -> list[str]:
    """The fields of an options dataclass."""
    return [one.name for one in fields(kind)]


def given(options: Any) -> list[str]:
    """Names of the fields that differ from what they are without a flag."""
    return [one.name for one in fields(options) if getattr(options, one.name) != one.default]


def read_options(kind: type, args: Any) -> Any:
    """The options of parsed arguments. A namespace without the flags, as an older checkpoint's, has the defaults."""
    return kind(**{one.name: getattr(args, one.name, one.default) for one in fields(kind)})


def add_flags(group: Any, kind: type, known: set[str]) -> None:
    """Add a flag for each field of an options dataclass to an argparse group, but for those in ``known``."""
    for one in fields(kind):
        if one.name in known:
            continue
        known.add(one.name)
        switch = {"action": "store_true"} if one.default is False else {}
        group.add_argument(flag_of(one.name), default=one.default, **switch, **one.metadata["flag"])
