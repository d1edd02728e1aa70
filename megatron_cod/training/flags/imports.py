"""``--import MODULE``: norm schemes from outside the package, registered before anything asks for their flags."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_cod.errors import UserError
from megatron_cod.schemes.table import import_modules
from megatron_cod.training.flags.recipe_files import load_recipe

KEY = "import"


def modules_of(recipe: Mapping[str, Any]) -> list[str]:
    """The modules that a recipe names, one or a list. UserError for anything else."""
    named = recipe.get(KEY) or []
    if not isinstance(named, str | list):
        raise UserError(f"{KEY}: {named!r} is no module name or list of them")
    return [named] if isinstance(named, str) else [str(one) for one in named]


def import_schemes(command_line: Sequence[str]) -> None:
    """Import what a command line and its recipe name. UserError for a module that cannot be found.

    Everything else on the line is left to the real parser, which can only be built afterwards.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--import", dest="modules", nargs="+", action="extend", default=[])
    parser.add_argument("--recipe")
    parser.add_argument("--unset", nargs="+", action="extend", default=[])
    try:
        given, _ = parser.parse_known_args(list(command_line))
    except argparse.ArgumentError:
        return  # a flag without its value: the real parser refuses it with its own words
    recipe = load_recipe(given.recipe) if given.recipe and KEY not in given.unset else {}
    import_modules([*modules_of(recipe), *given.modules])
