"""What a command under torchrun is for: its help and flags, and what differs between pretraining and fine-tuning."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _nothing(_: Any) -> None: ...


def _all_tokens() -> float:
    return 1.0


@dataclass(frozen=True, kw_only=True)
class Program:
    """A command that takes Megatron's flags and ours."""

    program: str
    """The module's name, for the help."""
    introduction: str
    """The head of the help."""
    add_arguments: Callable[[Any], None] = _nothing
    """Adds the program's own flags to an argument group."""
    default_flags: tuple[str, ...] = ()
    """Megatron flags that come before the recipe."""
    check_flags: Callable[[Any], None] = _nothing
    """Called with the plain parse of the flags. UserError, naming the flags, for what the program cannot do."""
    complete: Callable[[Any], None] = _nothing
    """Called with the plain parse, to set in it what the program derives. On every rank, before any process group."""
    check_data: Callable[[Any, int | None], None] | None = None
    """Called with the arguments and the model's vocabulary, on one rank a machine, before any process group exists.
    UserError with one clear line."""
    data_by_default: Callable[[Any], None] = _nothing
    """Called with the plain parse where the run's data is at hand: names data in it where none is named."""
    trains: bool = False
    """Whether the schedule, the optimizer, saving and the handling of faults matter."""


@dataclass(frozen=True, kw_only=True)
class Task(Program):
    """A row for each training entry; ``run.main`` does the rest."""

    datasets_provider: Callable[..., Any]
    """Megatron's: (sample counts, vp_stage) -> train, validation and test datasets."""
    forward_step: Callable[..., Any]
    """Megatron's ``forward_step_func``."""
    trains: bool = True
    fixes_evaluation_sets: bool = True
    """Whether the provider's validation and test sets are to be made the same at each evaluation; fine-tuning's are."""
    share_of_tokens: Callable[[], float] = _all_tokens
    """How much of a row is text and not padding, for the rate in the progress line."""
