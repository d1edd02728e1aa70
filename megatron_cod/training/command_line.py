"""From the command line and its recipe to the flags that Megatron is given."""

from __future__ import annotations

from argparse import Namespace

from megatron_cod.schemes.init_policy import resolve_init_policy
from megatron_cod.training import recipes
from megatron_cod.training.arguments import build_parser
from megatron_cod.training.backend_flags import default_flags
from megatron_cod.training.reporting import say
from megatron_cod.training.task import Task


def resolve_command_line(command_line: list[str], task: Task | None = None) -> tuple[list[str], Namespace, str]:
    """Defaults, then the recipe, then the command line: the flags for Megatron, their plain parse, and it as YAML.

    Raises ValueError for an unknown flag, recipe or recipe key.
    """
    parser = build_parser(task)
    given = parser.parse_args(command_line)
    from_recipe = []
    if given.recipe:
        from_recipe = recipes.recipe_flags(recipes.load_recipe(given.recipe), parser, given.unset)
    defaults, lines = default_flags([*from_recipe, *command_line])
    for line in lines:
        say(line)
    flags = [*defaults, *(task.default_flags if task else ()), *from_recipe, *command_line]
    raw = parser.parse_args(flags)
    always = {"norm_scheme": raw.norm_scheme, "init_policy": resolve_init_policy(raw.norm_scheme, raw.init_policy)[0]}
    return flags, raw, recipes.resolved_yaml(raw, parser, always)
