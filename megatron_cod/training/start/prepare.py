"""One way from a command line to checked arguments and the model's configuration, for every program that builds a model."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_cod.training import before_megatron  # noqa: F401

# isort: split
from megatron.core.msc_utils import MultiStorageClientFeature
from megatron.training.arguments import validate_args
from megatron.training.checkpointing import load_args_from_checkpoint
from megatron.training.global_vars import set_global_variables

from megatron_cod import errors
from megatron_cod.adaptations import torch_only
from megatron_cod.args import MegatronArgs
from megatron_cod.backends.torch_context_parallel import log_line
from megatron_cod.checkpoint import compatibility, scheme_record
from megatron_cod.checkpoint.function_record import record_of
from megatron_cod.console import log_rank0
from megatron_cod.errors import UserError, megatron_refusals, one_line
from megatron_cod.model import SchemeModelConfig, model_config_from_args
from megatron_cod.schemes.design import BlockDesign
from megatron_cod.training.flags.command_line import resolve_command_line
from megatron_cod.training.start.checks import Need, Phase, StartContext, run_checks
from megatron_cod.training.start.settings import Settings, settings_of
from megatron_cod.training.task import Program

LAUNCH = frozenset(Need)
"""What a rank of the launch provides to the checks."""


_NO_VALIDATION = 1000
"""Megatron-Core 0.19.2 divides by ``--eval-interval``, whose default became None, under ``--eval-iters 0`` too."""


@dataclass(frozen=True)
class Start:
    """A start that passed all checks which the program could make."""

    args: MegatronArgs
    """Megatron's arguments after its validation, our flags among them."""
    settings: Settings
    model_config: SchemeModelConfig
    resolved: str
    """What was asked, as YAML: a recipe that reproduces the run on any machine."""
    notes: tuple[str, ...]
    """What could not be checked, and what the checkpoint differs in."""

    @property
    def design(self) -> BlockDesign:
        """The norm scheme of the model's blocks, with its options and initialisation."""
        return self.model_config.design


@contextlib.contextmanager
def bad_tokenizer(args: MegatronArgs) -> Iterator[None]:
    """Around Megatron's globals: libraries of tokenizers raise what they like where one cannot be built."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not any("tokenizers" in frame.filename for frame in traceback.extract_tb(error.__traceback__)):
            raise
        given = f" with --tokenizer-model {args.tokenizer_model}" if args.tokenizer_model else ""
        raise UserError(
            f"--tokenizer-type {args.tokenizer_type}{given} cannot be built: {type(error).__name__}: "
            f"{one_line(error)[:300]}"
        ) from error


def _nothing(_: Any) -> None: ...


@dataclass(frozen=True, kw_only=True)
class StartHooks:
    """What a program does between the steps of a start."""

    parsed: Callable[[MegatronArgs], None] = _nothing
    """With the plain parse, before any check."""
    before_megatron: Callable[[Settings, MegatronArgs], None] = lambda *_: None
    """With the settings and the plain parse, when the checks that need no more have passed."""
    globals_set: Callable[[Any], object] = _nothing
    """With the arguments, when Megatron's global variables are set, and its signal handler with them."""
    agree: Callable[[Any], None] = _nothing
    """With the arguments, last: returns when all ranks have passed the checks."""


def prepare(
    command_line: Sequence[str],
    program: Program,
    world_size: int | None,
    provided: frozenset[Need] = LAUNCH,
    *,
    hooks: StartHooks | None = None,
    set_globals: bool = True,
    quiet: bool = False,
) -> Start:
    """Parse, validate and check a command line. No process group is made, and no model.

    Args:
        command_line: what follows the program's name.
        world_size: processes of the job; None: as many as one data-parallel replica takes.
        provided: what the checks can count on here, see ``checks.Need``.
        set_globals: set Megatron's global variables for these arguments, its tokenizer among them. Once a process.
        quiet: drop what Megatron and we print; ``Start.notes`` keeps what matters.

    Raises:
        UserError: for what a check or Megatron refuses, in one line.
    """
    hooks = hooks or StartHooks()
    with contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext():
        raw, resolved = resolve_command_line(command_line, program)
        hooks.parsed(raw)
        start = StartContext(
            command_line=command_line,
            raw=raw,
            program=program,
            world_size=replica_size(raw) if world_size is None else world_size,
            provided=provided,
            agree=hooks.agree,
            has_globals=set_globals,
        )
        run_checks(start, Phase.LAYOUT)
        program.complete(raw)
        if Need.DATA in provided:
            program.data_by_default(raw)
        run_checks(start, Phase.SCHEDULE)
        hooks.before_megatron(settings_of(raw), raw)
        torch_only.install()
        start.validated = args = _validated(raw, start.world_size)
        if set_globals:
            with megatron_refusals(errors.Phase.START), bad_tokenizer(args):
                set_global_variables(args)
            hooks.globals_set(args)
        with megatron_refusals(errors.Phase.START):
            config, line = model_config_from_args(args, own_layers=compatibility.lacks_norm_state(args))
        start.model_config = config
        for text in (line, log_line(config.transformer)):
            if text:
                log_rank0(text)
        args.model_function = record_of(config)
        if program.trains:
            scheme_record.record(args)
        run_checks(start, Phase.VALIDATED)
    return Start(args, settings_of(args), config, resolved, tuple(start.notes))


def replica_size(raw: MegatronArgs) -> int:
    """Ranks of one data-parallel replica. raw: the plain parse."""
    return raw.tensor_model_parallel_size * raw.pipeline_model_parallel_size * raw.context_parallel_size


def _validated(raw: MegatronArgs, world_size: int) -> Any:
    """Megatron's arguments after its validation, from the plain parse, which stays as it is."""
    args = as_megatron_parses(raw, world_size)
    if args.eval_interval is None:
        args.eval_interval = _NO_VALIDATION
    if args.skip_train and args.save_interval is None:
        args.save_interval = _NO_VALIDATION  # Megatron asks for one with --save, and saves nothing
    with megatron_refusals(errors.Phase.START):
        if args.use_checkpoint_args:
            if not (args.load or args.pretrained_checkpoint):
                raise UserError("--use-checkpoint-args needs --load or --pretrained-checkpoint")
            load_args_from_checkpoint(args, load_arg="pretrained_checkpoint")
            load_args_from_checkpoint(args)
        validate_args(args)
    return args


def as_megatron_parses(raw: MegatronArgs, world_size: int) -> MegatronArgs:
    """What ``megatron.training.arguments.parse_args`` of Megatron-Core 0.19.2 makes of a plain parse.

    It would build its parser of a thousand flags again.
    """
    args = copy.deepcopy(raw)
    explicit = "_is_global_batch_size_explicitly_specified"
    setattr(args, explicit, args.global_batch_size is not None)
    args.rank, args.world_size = int(os.environ.get("RANK", "0")), world_size
    if args.yaml_cfg is not None:
        raise UserError("--yaml-cfg is not supported: give a --recipe, or flags")
    if args.disable_msc_deprecated:
        args.enable_msc = False
    if args.enable_msc:
        MultiStorageClientFeature.enable()
    else:
        MultiStorageClientFeature.disable()
    return args
