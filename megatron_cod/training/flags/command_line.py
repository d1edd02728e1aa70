"""From the command line and its recipe to one parse of them."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from megatron_cod.args import MegatronArgs
from megatron_cod.console import log_rank0
from megatron_cod.launch import devices
from megatron_cod.schemes.init_policy import resolve_init_policy
from megatron_cod.training.flags import recipes
from megatron_cod.training.flags.defaults import COMMON_FLAGS, default_flags
from megatron_cod.training.flags.given import Given
from megatron_cod.training.flags.imports import import_schemes
from megatron_cod.training.flags.parser import build_parser
from megatron_cod.training.flags.recipe_files import load_recipe
from megatron_cod.training.flags.save_interval import set_save_interval
from megatron_cod.training.flags.token_counts import in_samples, overruled
from megatron_cod.training.task import Program


def _of_recipe(command_line: Sequence[str], parser: ArgumentParser, log: Callable[[str], None]) -> list[str]:
    """The recipe of a command line as flags, without what the command line omits."""
    given = parser.parse_args(command_line)
    if not given.recipe:
        return []
    recipe, line = recipes.without_machine(load_recipe(given.recipe))
    if line:
        log(line)
    return recipes.recipe_flags(recipe, parser, {*given.unset, *overruled(recipe, given)})


def given_by(command_line: Sequence[str], program: Program) -> Given:
    """What the command line and its recipe name, for a command line that ``resolve_command_line`` has taken."""
    parser = build_parser(program)
    recipe = _of_recipe(command_line, parser, lambda _: None)
    alone = parser.parse_args([*default_flags(recipe)[0], *program.default_flags, *recipe])
    return Given(command_line, recipe, cast(MegatronArgs, alone), parser._actions)


def resolve_command_line(command_line: Sequence[str], program: Program | None = None) -> tuple[MegatronArgs, str]:
    """Defaults, then the recipe, then the command line: their parse, and as YAML what was asked.

    The YAML is a recipe that reproduces the run on any machine: what is chosen by the machine is not in it.
    Raises UserError for an unknown flag, recipe or recipe key, for lengths that contradict each other, and for GPUs that
    torch cannot use. Sets what Megatron reads from the environment before the first CUDA context.
    """
    devices.check_driver()
    import_schemes(command_line)
    parser = build_parser(program)
    from_recipe = _of_recipe(command_line, parser, log_rank0)
    defaults, lines = default_flags([*from_recipe, *command_line])
    for line in lines:
        log_rank0(line)
    asked = [*(program.default_flags if program else ()), *from_recipe, *command_line]
    on_any_machine = parser.parse_args([*COMMON_FLAGS, *asked])
    raw = cast(MegatronArgs, parser.parse_args([*defaults, *asked]))
    devices.set_connections(raw)
    in_samples(raw, parser, log_rank0)
    if program and program.trains:
        set_save_interval(raw, log_rank0)
    if program and program.trains and raw.save and raw.tensorboard_dir is None:
        raw.tensorboard_dir = str(Path(raw.save) / "tensorboard")
    policy = resolve_init_policy(raw.norm_scheme, raw.init_policy)[0]
    always = {"norm_scheme": raw.norm_scheme, "init_policy": policy}
    return raw, recipes.resolved_yaml(on_any_machine, parser, always)
