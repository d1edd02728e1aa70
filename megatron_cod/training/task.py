"""What a run is for: the parts that differ between pretraining and fine-tuning. ``run.main`` does the rest."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _no_flags(_: Any) -> None: ...


def _flags_as_given(flags: list[str], _: argparse.Namespace) -> list[str]:
    return flags


def _all_tokens() -> float:
    return 1.0


@dataclass(frozen=True)
class Task:
    """A row for each training entry."""

    program: str
    """The module's name, for the help."""
    introduction: str
    """The head of the help."""
    datasets_provider: Callable[..., Any]
    """Megatron's: (sample counts, vp_stage) -> train, validation and test datasets."""
    forward_step: Callable[..., Any]
    """Megatron's ``forward_step_func``."""
    check_data: Callable[[Any, int | None], None]
    """Called with the arguments and the model's vocabulary, on one rank a node, before any process group exists.
    ValueError with one clear line."""
    add_arguments: Callable[[Any], None] = _no_flags
    """Adds the task's own flags to an argument group."""
    default_flags: tuple[str, ...] = ()
    """Megatron flags that come before the recipe."""
    prepare: Callable[[list[str], argparse.Namespace], list[str]] = _flags_as_given
    """(flags, their plain parse) -> the flags to run with. On every rank, before any process group; ValueError."""
    share_of_tokens: Callable[[], float] = _all_tokens
    """How much of a row is text and not padding, for the rate that the progress line tells."""
