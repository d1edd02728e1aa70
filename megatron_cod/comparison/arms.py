"""An arm of a comparison: a norm scheme with flags, written as one word."""

from dataclasses import dataclass, fields

from megatron_cod.errors import UserError
from megatron_cod.schemes.init_policy import INIT_POLICIES
from megatron_cod.schemes.options import CommonOptions, flag_of
from megatron_cod.schemes.table import SCHEMES, get_scheme

_NAMED = {"lns_scaled": "lns+scaled"}
"""Arms with a name of their own: what the paper advises against, and others found better than LNS alone."""

_VALUED = ("init-policy", "lr", "init-method-std")
"""Flags that an arm may have beside the options of its scheme."""


@dataclass(frozen=True)
class Arm:
    """name: the word the user wrote; flags: what it means for ``megatron_cod.training.pretrain``."""

    name: str
    flags: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The name as a directory."""
        return self.name.replace("+", "_").replace("=", "-")


def _option_flags() -> tuple[list[str], list[str]]:
    """(switches, flags with a value) that an arm may have, without the dashes; which scheme takes them is checked later."""
    kinds = dict.fromkeys([*(row.options for row in SCHEMES.values()), CommonOptions])
    options = [one for kind in kinds for one in fields(kind)]
    switches = [flag_of(one.name)[2:] for one in options if one.default is False]
    return switches, [*_VALUED, *(flag_of(one.name)[2:] for one in options if one.default is not False)]


def parse_arm(text: str) -> Arm:
    """``lns``, ``pre_ln+init-policy=normal``, ``lns+gamma-init``; a bare init policy is one too: ``pre_ln+normal``.

    UserError names what is wrong, and the nearest scheme.
    """
    named, *more = text.split("+")
    scheme, *parts = [*_NAMED.get(named, named).split("+"), *more]
    switches, valued = _option_flags()
    flags = ["--norm-scheme", get_scheme(scheme).name]
    for part in parts:
        name, _, value = part.partition("=")
        if name in INIT_POLICIES and not value:
            flags += ["--init-policy", name]
        elif name in switches and not value:
            flags += [f"--{name}"]
        elif name in valued and value:
            flags += [f"--{name}", value]
        else:
            known = ", ".join([*INIT_POLICIES, *switches, *(f"{one}=..." for one in valued)])
            raise UserError(f"arm {text!r}: {part!r} is not known; after + there may be {known}")
    return Arm(text, tuple(flags))


def parse_arms(text: str) -> list[Arm]:
    """Arms separated by commas; UserError for an empty list or one named twice."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("no arms given; --list shows the schemes")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{', '.join(twice)} given twice")
    return [parse_arm(name) for name in names]
