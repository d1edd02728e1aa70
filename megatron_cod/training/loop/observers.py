"""``Observer``: called at the events of a training run.

Megatron has no callbacks. ``run.OBSERVERS`` lists ours, in the order in which they are called;
``step_hooks.py`` calls them. A new observer, such as a fault handler, is a subclass and a row there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from megatron_cod.args import MegatronArgs
    from megatron_cod.checkpoint.events import Events
    from megatron_cod.launch.console_relay import Lines
    from megatron_cod.training.task import Task


class Observer:
    """Observes a run, or changes part of it. By default every event does nothing.

    | event | ranks | when | what exists then |
    |---|---|---|---|
    | `around_training` | all; the first of the list is outermost | from before Megatron's set-up to the end, however it ends | arguments; no process group |
    | `model_built` | all, in the same order, so it may be collective | in set-up, once | process groups, the rank's chunks in their DDP or FSDP wrapper; no optimizer, no weights of a checkpoint |
    | `wrap_forward` | all | before set-up, once | arguments; the wrapped step runs for each micro-batch of training and validation that is no replay of a CUDA graph |
    | `training_begins` | all | once, at the first training step, or forward step where none comes before | all of the run, the checkpoint loaded |
    | `step_begins` | all | at each training step, once, where Megatron zeroes the gradients: outside of every CUDA graph | `args.curr_iteration`; the step before is done and saved |
    | `forward_begins` | all | at each micro-batch, of training and validation; not in a replay of a graph of the whole iteration | its data is not read yet |
    | `gradients_ready` | all, in the same order, so it may be collective | after the backward of all micro-batches; not under graphs of the whole iteration | gradients, reduced over the ranks; the optimizer's step comes next |
    | `loss` | the last, which has the losses | after a step, where Megatron logs it | the step's loss, as a number |
    """  # noqa: E501 - a row of the table is one line

    def around_training(self) -> AbstractContextManager[Any]:
        """A context around set-up and training."""
        return nullcontext()

    def model_built(self, model: list[torch.nn.Module]) -> None:
        """The rank's part of the model stands."""

    def wrap_forward(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Megatron's ``forward_step_func``, with what the observer needs around it."""
        return step

    def training_begins(self) -> None:
        """Set-up is over."""

    def step_begins(self) -> None:
        """A training step begins."""

    def forward_begins(self) -> None:
        """A forward step begins."""

    def gradients_ready(self) -> None:
        """The gradients of a training step are complete."""

    def loss(self, step: int, loss: float) -> str | None:
        """A training step had this loss; a line for the console, or None."""


EVENTS = tuple(name for name in vars(Observer) if not name.startswith("_"))


class VarianceObserver(Observer):
    """Measures the residual stream in validation (``monitoring/stream_variance.py``)."""

    def collect(self, model: Sequence[torch.nn.Module], /) -> list[float]:
        """Megatron's ``non_loss_data_func``: the variance of each global layer since the last call. Collective."""
        raise NotImplementedError

    @staticmethod
    def report(variances: list[float], iteration: int, writer: Any) -> None:
        """Megatron's ``process_non_loss_data_func``: write what ``collect`` returned, on the last rank."""
        raise NotImplementedError


@dataclass
class Run:
    """A run about to train: what its observers are made from."""

    args: MegatronArgs
    """Megatron's, after validation."""
    task: Task
    events: Events
    log: Callable[[str], None]
    """Prints a line on rank 0."""
    lines: Lines
    until_training: Observer
    variance: VarianceObserver
    evaluations: Observer | None = None
    """Measures and reports evaluations (``validation/evaluations.py``)."""
    claim: Observer | None = None
    """Of ``--save``, on rank 0 (``save_claim.py``)."""
    sigterm: str = "SIGTERM"
    """What a SIGTERM means on this rank, where the run may have sent it to itself."""
    in_use: set[Path] = field(default_factory=set)
    """Checkpoints that another process reads, on rank 0: retention leaves them."""
    observers: Sequence[Observer] = field(default=())

    def losses(self, step: int, loss: float) -> list[str]:
        """Report a training step's loss, on the rank that has it; lines for the console."""
        return [line for one in self.observers if (line := one.loss(step, loss))]


Row = Callable[[Run], Observer | None]
"""Makes an observer, or none where the run did not ask for it."""


def observers_of(run: Run, rows: Iterable[Row]) -> tuple[Observer, ...]:
    """Those that the run needs, in order."""
    return tuple(one for one in (row(run) for row in rows) if one is not None)


def around(observers: Iterable[Observer]) -> ExitStack:
    """The contexts of all, the first outermost."""
    with ExitStack() as stack:
        for one in observers:
            stack.enter_context(one.around_training())
        return stack.pop_all()


def watch_for(event: str, observers: Iterable[Observer]) -> list[Observer]:
    """Those with something of their own to do at an event."""
    return [one for one in observers if getattr(type(one), event) is not getattr(Observer, event)]
