"""From the command line and its recipe to the flags that Megatron is given."""

from __future__ import annotations

from argparse import Namespace

from megatron_cod.schemes.init_policy import resolve_init_policy
from megatron_cod.training import recipes
from megatron_cod.training.arguments import build_parser
from megatron_cod.training.backend_flags import default_flags
from megatron_cod.training.imports import import_schemes
from megatron_cod.training.reporting import say
from megatron_cod.training.task import Program
from megatron_cod.training.token_counts import in_samples, overruled


def resolve_command_line(command_line: list[str], program: Program | None = None) -> tuple[list[str], Namespace, str]:
    """Defaults, then the recipe, then the command line: flags for Megatron, their plain parse, and as YAML what was asked.

    Raises ValueError for an unknown flag, recipe or recipe key, and for lengths that contradict each other.
    """
    import_schemes(command_line)
    parser = build_parser(program)
    given = parser.parse_args(command_line)
    from_recipe = []
    if given.recipe:
        recipe = recipes.load_recipe(given.recipe)
        from_recipe = recipes.recipe_flags(recipe, parser, {*given.unset, *overruled(recipe, given)})
    defaults, lines = default_flags([*from_recipe, *command_line])
    for line in lines:
        say(line)
    flags = [*defaults, *(program.default_flags if program else ()), *from_recipe, *command_line]
    raw = parser.parse_args(flags)
    counted = in_samples(flags, parser.parse_args(flags), say)
    always = {"norm_scheme": raw.norm_scheme, "init_policy": resolve_init_policy(raw.norm_scheme, raw.init_policy)[0]}
    return counted, parser.parse_args(counted), recipes.resolved_yaml(raw, parser, always)
