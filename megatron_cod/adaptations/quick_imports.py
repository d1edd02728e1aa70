"""Import Megatron on a CPU without what it imports for nothing there: torch's compiler, and Weights & Biases.

Half of a start's seconds are imports. Megatron decorates functions with ``torch.compile`` while it is imported, which
loads the compiler, and TORCHDYNAMO_DISABLE has it compile none of them. W&B is only looked at by its timers.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import torch


def as_it_is(model: Any = None, **_: Any) -> Any:
    """``torch.compile``, also as a decorator with arguments, where nothing is compiled."""
    return model if model is not None else lambda function: function


@contextmanager
def quick_imports() -> Iterator[None]:
    """For the first import of Megatron, in a process whose environment is prepared for the CPU."""
    compiles = os.environ.get("TORCHDYNAMO_DISABLE") != "1"
    with mock.patch.object(torch, "compile", torch.compile if compiles else as_it_is):
        if "wandb" in sys.modules:
            yield
            return
        sys.modules["wandb"] = None  # type: ignore[assignment]  # an import of it fails, as where it is not installed
        try:
            yield
        finally:
            del sys.modules["wandb"]


def pass_wandb_to_timers(wandb: ModuleType) -> None:
    """Megatron's timers write to W&B if they have its module: here they were imported without."""
    timers: Any = importlib.import_module("megatron.core.timers")
    if timers.wandb is None:
        timers.wandb = wandb
