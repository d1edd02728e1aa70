"""Everything that can refuse a start, in one table: the launch, rehearsal, preflight, evaluation and benchmark read it.

A check raises UserError with one line that names the flags. A program that cannot provide what a check needs skips it, or
logs what it would have refused (``Need``); no program skips a check for another reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
from megatron.training import get_tokenizer

from megatron_cod.args import MegatronArgs
from megatron_cod.checkpoint import compatibility, selection
from megatron_cod.console import log_rank0
from megatron_cod.data.datasets.blends import blends_of
from megatron_cod.errors import UserError
from megatron_cod.launch.devices import check_devices, check_needs_gpu
from megatron_cod.training.data import hub_tokenizer
from megatron_cod.training.data.hub_tokenizer import check_hub_tokenizer
from megatron_cod.training.exports.checks import check_interval, check_model
from megatron_cod.training.faults.handling import check_flags
from megatron_cod.training.faults.save_claim import check_no_other_run
from megatron_cod.training.flags.command_line import given_by
from megatron_cod.training.flags.compile_checks import check_compiled
from megatron_cod.training.flags.layout_checks import check_built, check_layout, check_vocabulary, correct_vocab_size
from megatron_cod.training.flags.optimizer_checks import check_offload_device, check_optimizer
from megatron_cod.training.flags.packages import check_packages
from megatron_cod.training.flags.parser import build_parser
from megatron_cod.training.flags.ranges import check_ranges
from megatron_cod.training.flags.refused import check_refused
from megatron_cod.training.flags.save_checks import check_saving
from megatron_cod.training.flags.schedule_checks import check_schedule
from megatron_cod.training.flags.void import check_void
from megatron_cod.training.monitoring.reporting import check_wandb
from megatron_cod.training.task import Program


class Need(Enum):
    """What a check needs besides the arguments, and what happens where a program does not have it."""

    MACHINE = "a machine of the job, with its GPUs and packages"
    """Without: the check runs, and what it refuses is a note."""
    PROCESSES = "the processes that the launcher starts on a machine"
    """Without: skipped."""
    DATA = "the run's data and tokenizer"
    """Without: checked as far as it is named, else a note."""
    RANKS = "all ranks of the job"
    """Without: skipped."""


class Phase(Enum):
    """When a check runs."""

    LAYOUT = "the command line and its recipe are parsed"
    SCHEDULE = "the program has completed the parse (fine-tuning: epochs are steps)"
    VALIDATED = "Megatron has validated the arguments, and the model's configuration is built"


@dataclass(kw_only=True)
class StartContext:
    """What the checks of one start read."""

    command_line: Sequence[str]
    raw: MegatronArgs
    """The plain parse of defaults, recipe and command line."""
    program: Program
    world_size: int
    provided: frozenset[Need]
    agree: Callable[[Any], None] = lambda _: None
    """Returns when all ranks have called it and agree; see ``agreement.among_ranks``."""
    validated: MegatronArgs | None = None
    model_config: Any = None
    has_globals: bool = True
    """Whether Megatron's global variables are set for these arguments, its tokenizer among them."""
    notes: list[str] = field(default_factory=list)
    """Lines for the log: what could not be checked, what a checkpoint differs in."""

    @property
    def args(self) -> MegatronArgs:
        """Megatron's arguments after its validation: in ``Phase.VALIDATED`` alone."""
        assert self.validated is not None
        return self.validated

    @property
    def rank(self) -> int:
        """The global rank of this process, as the launcher set it."""
        return int(os.environ.get("RANK", "0"))

    @property
    def reads_files(self) -> bool:
        """One rank a machine reads it: thousands of ranks that read the same index would overload the file system."""
        return int(os.environ.get("LOCAL_RANK", "0")) == 0


@dataclass(frozen=True, kw_only=True)
class Check:
    """A row of the table."""

    name: str
    phase: Phase
    run: Callable[[StartContext], Iterable[str] | None]
    """Raises UserError; returns lines for the log."""
    needs: frozenset[Need] = frozenset()
    training: bool = False
    """Only for programs that train."""


def _program_flags(start: StartContext) -> None:
    start.program.check_flags(start.raw)


def _ranges(start: StartContext) -> None:
    check_ranges(start.raw, build_parser(start.program)._actions)


def _void(start: StartContext) -> Iterable[str]:
    given = cache(lambda: given_by(start.command_line, start.program))
    return check_void(start.raw, build_parser(start.program)._actions, start.program.trains, given)


def _schedule(start: StartContext) -> None:
    # A rehearsal plans a model whose length of training is not decided yet; the launch itself needs it.
    check_schedule(start.raw, complete=Need.RANKS in start.provided)


def _save_directory(start: StartContext) -> None:
    raw = start.raw
    keep = Need.RANKS in start.provided and not raw.dry_run  # a run follows
    selection.check_save(raw.save, raw.load, step=raw.ckpt_step, finetune=raw.finetune, keep=keep)


def _no_other_run(start: StartContext) -> None:
    if start.rank == 0:
        check_no_other_run(start.raw.save, log_rank0)


def _vocabulary(start: StartContext) -> Iterable[str]:
    """The tokenizer fits the model. A program without Megatron's globals may lack its files, if the size is known."""
    args = start.args
    if start.has_globals:
        return _fitted(args, get_tokenizer())
    model = args.tokenizer_model
    if model and args.tokenizer_type == "SentencePieceTokenizer" and not Path(model).is_file():
        raise UserError(f"--tokenizer-model {model} does not exist")
    if hub_tokenizer.problem(args) and args.padded_vocab_size is not None:
        return ()  # noted by its own check
    named = model or args.tokenizer_type in ("NullTokenizer", "ByteLevelTokenizer")
    lines: list[str] = []
    if named or args.padded_vocab_size is None:
        lines = _fitted(args, _tokenizer(args))
    if not named:
        lines.append(f"no --tokenizer-model for {args.tokenizer_type}: the launch needs it; not checked")
    return lines


def _fitted(args: MegatronArgs, tokenizer: Any) -> list[str]:
    check_vocabulary(args, tokenizer)
    return correct_vocab_size(args, tokenizer)


def _tokenizer(args: MegatronArgs) -> Any:
    """The tokenizer, without Megatron's globals; fills in the padded vocabulary. UserError where it cannot be built."""
    check_hub_tokenizer(args)
    try:
        tokenizer = build_tokenizer(args)
    except Exception as error:
        # Tokenizer libraries may raise anything: then the size is unknown.
        raise UserError(f"the vocabulary is unknown: give --padded-vocab-size or a tokenizer ({error})") from None
    if args.padded_vocab_size is None:
        raise UserError("the vocabulary is unknown: give --padded-vocab-size or --vocab-size")
    return tokenizer


def _data(start: StartContext) -> Iterable[str]:
    args, check = start.args, start.program.check_data
    if check is None or not start.reads_files:
        return ()
    if Need.DATA not in start.provided and not (args.mock_data or blends_of(args)):
        return ("no data given (--train-data-path ...): the launch needs it; not checked",)
    check(args, args.padded_vocab_size or args.vocab_size)
    return ()


def _checkpoint(start: StartContext) -> Iterable[str]:
    args = start.args
    return compatibility.check_load(args, args.override_scheme_check, start.program.trains) if start.reads_files else ()


_MACHINE = frozenset({Need.MACHINE})
_DATA = frozenset({Need.DATA})

CHECKS = (
    Check(
        name="devices",
        phase=Phase.LAYOUT,
        run=lambda _: check_devices(),
        needs=frozenset({Need.MACHINE, Need.PROCESSES}),
    ),
    Check(name="ranges of numbers", phase=Phase.LAYOUT, run=_ranges),
    Check(name="options that need a GPU", phase=Phase.LAYOUT, run=lambda s: check_needs_gpu(s.raw), needs=_MACHINE),
    Check(name="packages", phase=Phase.LAYOUT, run=lambda s: check_packages(s.raw), needs=_MACHINE),
    Check(name="hub tokenizer", phase=Phase.LAYOUT, run=lambda s: check_hub_tokenizer(s.raw), needs=_MACHINE),
    Check(name="the program's flags", phase=Phase.LAYOUT, run=_program_flags),
    Check(name="layout", phase=Phase.LAYOUT, run=lambda s: check_layout(s.raw, s.world_size)),
    Check(name="flags that break", phase=Phase.SCHEDULE, run=lambda s: check_refused(s.raw, s.program.trains)),
    Check(name="flags that do nothing", phase=Phase.SCHEDULE, run=_void),
    Check(name="schedule", phase=Phase.SCHEDULE, run=_schedule, training=True),
    Check(name="optimizer", phase=Phase.SCHEDULE, run=lambda s: check_optimizer(s.raw), training=True),
    Check(
        name="optimizer on the host",
        phase=Phase.SCHEDULE,
        run=lambda s: check_offload_device(s.raw),
        needs=_MACHINE,
        training=True,
    ),
    Check(name="saving", phase=Phase.SCHEDULE, run=lambda s: check_saving(s.raw), training=True),
    Check(name="exports", phase=Phase.SCHEDULE, run=lambda s: check_interval(s.raw), training=True),
    Check(name="fault handling", phase=Phase.SCHEDULE, run=lambda s: check_flags(s.raw), training=True),
    Check(
        name="W&B",
        phase=Phase.SCHEDULE,
        run=lambda s: check_wandb(s.raw, s.rank, s.world_size),
        needs=_MACHINE,
        training=True,
    ),
    Check(name="the directory of --save", phase=Phase.SCHEDULE, run=_save_directory, training=True),
    Check(
        name="no other run in --save",
        phase=Phase.SCHEDULE,
        run=_no_other_run,
        needs=frozenset({Need.RANKS}),
        training=True,
    ),
    Check(name="the model", phase=Phase.VALIDATED, run=lambda s: check_built(s.args, s.model_config.transformer)),
    Check(
        name="compiled layers",
        phase=Phase.VALIDATED,
        run=lambda s: check_compiled(s.args, s.model_config.transformer),
        needs=_MACHINE,
    ),
    Check(name="vocabulary", phase=Phase.VALIDATED, run=_vocabulary, needs=_DATA),
    Check(name="the exported model", phase=Phase.VALIDATED, run=lambda s: check_model(s.args), training=True),
    Check(name="data", phase=Phase.VALIDATED, run=_data, needs=_DATA),
    Check(name="the checkpoint of --load", phase=Phase.VALIDATED, run=_checkpoint),
    Check(
        name="ranks agree",
        phase=Phase.VALIDATED,
        run=lambda s: s.agree(s.args),
        needs=frozenset({Need.RANKS}),
        training=True,
    ),
)
"""In the order in which they run. The driver, and the names of flags and recipe keys, are checked where they are read."""


def applies(check: Check, program: Program, provided: frozenset[Need]) -> bool:
    """Whether a program makes a check, though perhaps as a note or in part."""
    skipped = {Need.PROCESSES, Need.RANKS} & check.needs - provided
    return not skipped and (program.trains or not check.training)


def run_checks(start: StartContext, phase: Phase) -> None:
    """Run the checks of a phase; their lines are added to ``start.notes``. UserError for the first that refuses."""
    for check in CHECKS:
        if check.phase is not phase or not applies(check, start.program, start.provided):
            continue
        try:
            start.notes += check.run(start) or ()
        except UserError as error:
            if Need.MACHINE not in check.needs or Need.MACHINE in start.provided:
                raise
            start.notes.append(f"{error}; not checked")
