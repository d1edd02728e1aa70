"""A launch's command line as the launch itself would read it, without its processes: parsed, validated, refused."""

import contextlib
import io
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cod.training import environment  # noqa: F401

# isort: split
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
from megatron.training.arguments import parse_args, validate_args

from megatron_cod import cpu, identity, torch_adaptations
from megatron_cod.errors import Phase, UserError, refusal
from megatron_cod.estimate.parameters import uncounted_features
from megatron_cod.model import model_config_from_args
from megatron_cod.training import checkpoints
from megatron_cod.training.argument_checks import check_built, check_layout
from megatron_cod.training.arguments import add_arguments
from megatron_cod.training.batch_sizes import batch_sizes
from megatron_cod.training.blends import blends_of, check_data
from megatron_cod.training.command_line import resolve_command_line
from megatron_cod.training.devices import check_needs_gpu, need_gpu
from megatron_cod.training.optimizer_checks import check_optimizer
from megatron_cod.training.packages import check_packages, missing
from megatron_cod.training.save_checks import check_saving
from megatron_cod.training.schedule_checks import check_schedule


@dataclass(frozen=True)
class Launch:
    """What the launch would start with."""

    args: Any
    """Megatron's arguments after its own validation."""
    flags: list[str]
    """Defaults, recipe and command line as one list."""
    world_size: int
    notes: tuple[str, ...]
    """What could not be checked here."""


@contextlib.contextmanager
def as_process(rank: int, world_size: int, flags: Sequence[str]) -> Iterator[None]:
    """The environment and command line of one process of the job, for as long as the block lasts."""
    names = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    before, argv = {name: os.environ.get(name) for name in names}, sys.argv
    os.environ.update(names)
    sys.argv = ["pretrain", *flags]
    try:
        yield
    finally:
        sys.argv = argv
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _check_data(args: Any) -> list[str]:
    """Whatever data and tokenizer the command line names; returns what it leaves open."""
    notes = []
    if args.mock_data or blends_of(args):
        check_data(args, args.padded_vocab_size or args.vocab_size)
    else:
        notes.append("no data given (--train-data-path ...): the launch would ask for it; not checked")
    model = args.tokenizer_model
    if model and args.tokenizer_type == "SentencePieceTokenizer" and not Path(model).is_file():
        raise UserError(f"--tokenizer-model {model} does not exist")
    if not model and args.tokenizer_type not in ("NullTokenizer", "ByteLevelTokenizer"):
        notes.append(f"no --tokenizer-model for {args.tokenizer_type}: the launch would ask for it; not checked")
    return notes


def read_launch(command_line: Sequence[str], world_size: int) -> Launch:
    """Everything the launch would refuse before it starts training, as far as one machine can see it.

    command_line: what follows ``megatron_cod.training.pretrain``. Raises UserError with one line. No process group, no
    model; Megatron's own messages are kept back.
    """
    if world_size < 1:
        raise UserError(f"--world-size {world_size} must be at least 1")
    said = io.StringIO()
    try:
        with as_process(0, world_size, ()), contextlib.redirect_stdout(said):
            flags, raw, _ = resolve_command_line(list(command_line))
        elsewhere = _needed_there(raw)
        check_layout(raw, world_size)
        check_schedule(raw, complete=False)
        check_optimizer(raw)
        check_saving(raw)
        checkpoints.check_save(raw.save, raw.load, step=raw.ckpt_step, finetune=raw.finetune)
        torch_adaptations.install()
        with as_process(0, world_size, flags), contextlib.redirect_stdout(said):
            args: Namespace = parse_args(add_arguments)
            validate_args(args)
            _vocabulary(args)
            model_config, _ = model_config_from_args(args)
            check_built(args, model_config.transformer)
            identity.record(args)
            if args.step_batch_size_schedule:  # Megatron has the least that can be there
                args.global_batch_size = batch_sizes(args).last
            loaded = checkpoints.check_load(args, args.override_scheme_check)
    except Exception as error:
        raise refusal(error, Phase.START) from None
    refused = uncounted_features(args)
    if refused:
        raise UserError(f"the rehearsal cannot count {', '.join(refused)} yet")
    return Launch(args, flags, world_size, (*elsewhere, *loaded, *_check_data(args)))


def _needed_there(raw: Namespace) -> list[str]:
    """What the launch needs of its machines. Refused where this is such a machine, noted on one without a GPU.

    UserError for a missing package, and for Megatron-FSDP, which is not even planned without a GPU.
    """
    if cpu.has_cuda() or raw.use_megatron_fsdp:
        check_needs_gpu(raw)
        check_packages(raw)
    return [f"{line}; not checked" for line in (*need_gpu(raw), *missing(raw))]


def _vocabulary(args: Any) -> None:
    """Fill in the padded vocabulary, from the tokenizer where nothing else says it."""
    if args.padded_vocab_size is None:
        try:
            build_tokenizer(args)
        except Exception as error:
            # Tokenizer libraries raise what they like; whatever it is, the size is unknown.
            raise UserError(f"the vocabulary is unknown: give --padded-vocab-size or a tokenizer ({error})") from None
    if args.padded_vocab_size is None:
        raise UserError("the vocabulary is unknown: give --padded-vocab-size or --vocab-size")
