"""SCHEMES: one row per norm scheme, and how a scheme from outside the package is registered (docs/schemes.md)."""

import importlib
import sys
from collections.abc import Iterable
from difflib import get_close_matches

from megatron_cod.errors import UserError
from megatron_cod.schemes.branch_scale import LAYERSCALE, SKIPINIT
from megatron_cod.schemes.complete_p import COMPLETE_P
from megatron_cod.schemes.hyper_connections import HYPER_CONNECTIONS
from megatron_cod.schemes.layer_rope import LAYER_ROPE
from megatron_cod.schemes.lns import LNS
from megatron_cod.schemes.mhc import MHC
from megatron_cod.schemes.options import CommonOptions, flag_of, names
from megatron_cod.schemes.post_norm import DEEPNORM, MIX_LN, POST_LN
from megatron_cod.schemes.row import Scheme
from megatron_cod.schemes.sandwich import SANDWICH_LN

PRE_LN = Scheme(
    name="pre_ln",
    block="x + F(N(x))",
    reference="Baevski & Auli, arXiv 1809.10853; stock Megatron",
    default_init="scaled",
)
SCHEMES: dict[str, Scheme] = {}
STOCK = PRE_LN.name
"""What Megatron builds by itself: the scheme of a checkpoint that records none."""
DEFAULT = LNS.name
"""The scheme of a run that names none."""


def register_scheme(row: Scheme) -> Scheme:
    """Add a row to ``SCHEMES`` and return it. UserError for a name or an option that another row has already."""
    if not row.name.isidentifier():
        raise UserError(f"norm scheme {row.name!r}: its name must be a Python identifier")
    if row.name in SCHEMES:
        raise UserError(f"norm scheme {row.name!r} is registered already")
    taken = dict.fromkeys(names(CommonOptions), "every scheme")
    taken |= {
        name: other.name
        for other in SCHEMES.values()
        for name in names(other.options)
        if other.options is not row.options
    }
    for name in names(row.options):
        if name in taken:
            raise UserError(f"norm scheme {row.name!r}: its option {flag_of(name)} is one of {taken[name]} already")
    SCHEMES[row.name] = row
    return row


for _row in (
    *(PRE_LN, LNS, POST_LN, MIX_LN, DEEPNORM, SANDWICH_LN, LAYERSCALE, SKIPINIT),
    *(LAYER_ROPE, COMPLETE_P, HYPER_CONNECTIONS, MHC),
):
    register_scheme(_row)


def import_modules(modules: Iterable[str]) -> None:
    """Import the modules of ``--import``, which register schemes. A second time it does nothing.

    They are looked for as Python does, and in the current directory. UserError for one that cannot be found.
    """
    for name in modules:
        if "" not in sys.path:
            sys.path.append("")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # something that the module itself imports
            raise UserError(
                f"--import {name}: there is no such module; give the name that Python imports it by, and put its "
                f"folder on PYTHONPATH"
            ) from None


def get_scheme(name: str) -> Scheme:
    """The row called ``name``; UserError names the nearest scheme otherwise."""
    if name in SCHEMES:
        return SCHEMES[name]
    near = get_close_matches(name, SCHEMES, n=1)
    hint = f"; did you mean {near[0]}?" if near else "; --import MODULE registers schemes of your own"
    raise UserError(f"no norm scheme {name!r}, there are {', '.join(SCHEMES)}{hint}")


def takers(option: str) -> list[str]:
    """The schemes that take an option."""
    return [row.name for row in SCHEMES.values() if option in names(row.options) or option in names(CommonOptions)]
