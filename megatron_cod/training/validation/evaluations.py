"""What a run measures on its validation and test sets: loss and bits per byte, on the console and in the metrics.

Megatron writes both sets under one name, and under ``--skip-train`` neither. Here the losses are summed on the ranks that
have them, in double precision, and reported once per evaluation under the name of the set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core import mpu
from megatron.training import get_tensorboard_writer

from megatron_cod.analysis.metrics import TEST_LOSS, TRAIN_LOSS, VALID_LOSS
from megatron_cod.console import this_rank
from megatron_cod.training.loop.observers import Observer, Run
from megatron_cod.training.monitoring.metrics_writer import MetricsWriter
from megatron_cod.training.monitoring.reporting import write_scalar
from megatron_cod.training.validation.fixed_set import Provider, bytes_per_token, fixed_sets

_LOSS = {"validation": VALID_LOSS, "test": TEST_LOSS}
_SPLIT = {"validation": "valid", "test": "test"}


class Evaluations(Observer):
    """Measures each evaluation of Megatron's loop. ``collect`` is Megatron's ``non_loss_data_func``: it ends one.

    At one step the validation set comes first: Megatron evaluates it between training steps, or after the last one, and
    then the test set. At the last step it would evaluate the validation set a second time; that is skipped.
    """

    def __init__(self, run: Run) -> None:
        self._args, self._variance, self._log = run.args, run.variance, run.log
        self._sets = fixed_sets(run.args, run.log) if run.task.fixes_evaluation_sets else None
        self._sums = torch.zeros(0)
        self._step: int | None = None  # that has begun in this process
        self._validated = False  # since the last training step

    def around_sets(self, provider: Provider) -> Provider:
        """A task's datasets provider, with its validation and test sets fixed."""
        return provider if self._sets is None else self._sets.around(provider)

    def model_built(self, model: list[torch.nn.Module]) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=torch.cuda.current_device())

    def step_begins(self) -> None:
        self._step, self._validated = self._args.curr_iteration + 1, False
        writer = get_tensorboard_writer()
        if isinstance(writer, MetricsWriter):
            writer.is_silent = False

    def wrap_forward(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def measured(iterator: Any, model: torch.nn.Module, *rest: Any) -> Any:
            output, loss_func = step(iterator, model, *rest)
            return output, loss_func if model.training else partial(self._measured, loss_func)

        return measured

    def _measured(self, loss_func: Callable[..., Any], output: torch.Tensor) -> Any:
        found = loss_func(output)
        self._sums += found[-1][TRAIN_LOSS].double()  # in place: the replay of a captured evaluation adds too
        return found

    def collect(self, model: Sequence[torch.nn.Module]) -> None:
        """Report the evaluation that ends here. Collective over all ranks."""
        variances, loss = self._variance.collect(model), self._loss()
        name = "test" if self._validated else "validation"
        self._validated = True
        step = self._args.iteration if self._step is None else self._step
        if self._args.skip_train or step >= (self._args.train_iters or 0):
            self._args.do_valid = False
            if self._sets is not None:
                self._sets.use("test")
        writer = get_tensorboard_writer()
        if loss is None or not isinstance(writer, MetricsWriter) or this_rank() != self._args.world_size - 1:
            return
        self._report(writer, name, step, loss)
        if name == "validation":
            self._variance.report(variances, step, writer)
        writer.is_silent = True  # until the next step: Megatron would write the same again

    def _loss(self) -> float | None:
        """Mean over the tokens of all ranks, on those of the last stage; None on the others."""
        if not mpu.is_pipeline_last_stage(ignore_virtual=True):
            return None
        torch.distributed.all_reduce(self._sums, group=mpu.get_data_parallel_group(with_context_parallel=True))
        loss, tokens = self._sums.tolist()
        self._sums.zero_()
        return loss / tokens if tokens else None

    def _report(self, writer: MetricsWriter, name: str, step: int, loss: float) -> None:
        per_token = bytes_per_token(self._args, _SPLIT[name]) if self._sets is not None else None
        for tag, value in writer.evaluation(name, step, loss, per_token).items():
            write_scalar(tag, value, step)
        consumed = self._args.consumed_train_samples
        writer.add_scalar(f"{_LOSS[name]} vs samples", loss, consumed)
        if self._args.log_validation_ppl_to_tensorboard:
            writer.add_perplexity(_LOSS[name], step, loss, consumed)
