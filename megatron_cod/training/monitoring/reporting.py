"""Reports of a run: metrics, TensorBoard, W&B, the progress line, the summary. All are on the last rank; rank 0 prints its
lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from megatron_cod.adaptations.quick_imports import pass_wandb_to_timers
from megatron_cod.args import MegatronArgs
from megatron_cod.training import before_megatron  # noqa: F401

# isort: split
from megatron.training import get_tensorboard_writer
from megatron.training.global_vars import get_wandb_writer
from megatron.training.training import num_floating_point_operations

from megatron_cod.analysis.metrics import PARAMETERS
from megatron_cod.console import log_rank0, this_rank
from megatron_cod.errors import UserError
from megatron_cod.launch.console_relay import Lines
from megatron_cod.training.flags.batch_sizes import planned
from megatron_cod.training.loop.observers import Observer, Run
from megatron_cod.training.monitoring.live_panel import live_panel
from megatron_cod.training.monitoring.metrics_writer import MetricsWriter, install_metrics_writer
from megatron_cod.training.monitoring.parameter_count import count_parameters
from megatron_cod.training.monitoring.throughput import Job, peak_tflops

# How long rank 0 waits for the last lines of the rank that reports them, which may be stuck where this one failed.
_SECONDS_AT_THE_END = 10.0
_SECONDS_AFTER_A_FAILURE = 2.0


def check_wandb(args: MegatronArgs, rank: int, world: int) -> None:
    """UserError if W&B is requested and not installed on the last rank, which uses it. args: the plain parse."""
    if not args.wandb_project or rank != world - 1:
        return
    try:
        import wandb
        from wandb import init  # noqa: F401  # a folder named wandb, as W&B makes, can be imported too
    except ImportError as error:
        raise UserError(f"--wandb-project needs the package wandb ({error}): pip install wandb") from None
    pass_wandb_to_timers(wandb)


def job_of(args: MegatronArgs, share_of_tokens: float) -> Job:
    """What the rates of a run are computed with. share_of_tokens: how much of a row is text and not padding."""
    flops = float(num_floating_point_operations(args, 1))
    return Job(args.world_size, args.seq_length * share_of_tokens, flops, peak_tflops(args.peak_tflops))


def _metrics_writer(
    args: MegatronArgs,
    job: Job,
    lines: Lines,
    see_loss: Callable[[int, float], Iterable[str]],
    inner: Any,
) -> MetricsWriter:
    path = Path(args.metrics_file) if args.metrics_file else Path(args.save) / "metrics.jsonl" if args.save else None
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
    steps, samples = planned(args)
    return MetricsWriter(
        inner,
        path,
        train_iters=steps,
        train_samples=samples,
        batch_size=args.global_batch_size,
        consumed=lambda: int(args.consumed_train_samples),
        job=job,
        log_interval=args.log_interval,
        emit=lines.send,
        status=lines.send_status,
        see_loss=see_loss,
        also=_to_wandb,
    )


def _to_wandb(values: dict[str, float], step: int) -> None:
    wandb = get_wandb_writer()
    if wandb:
        wandb.log(values, step)


def write_scalar(name: str, value: float, step: int) -> None:
    """One value to the metrics, TensorBoard and W&B, on the rank that keeps them."""
    writer = get_tensorboard_writer()
    if isinstance(writer, MetricsWriter):
        writer.add_scalar(name, value, step)
    _to_wandb({name: value}, step)


class Report(Observer):
    """Metrics, TensorBoard, W&B, progress line and summary of a run."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def around_training(self) -> AbstractContextManager[None]:
        run = self._run
        return reported(run.args, run.task.share_of_tokens(), run.losses, run.lines)

    def model_built(self, model: list[Any]) -> None:
        self._run.lines.attach()
        report_parameters(model)


def report_parameters(model: list[Any]) -> None:
    """Log and record how many parameters the model has. Collective."""
    total = count_parameters(model)
    log_rank0(f"parameters: {total:,}")
    write_scalar(PARAMETERS, total, 0)


@contextmanager
def reported(
    args: MegatronArgs, share_of_tokens: float, see_loss: Callable[[int, float], Iterable[str]], lines: Lines
) -> Iterator[None]:
    """Around the training: the writer that Megatron's values go to, and at the end the summary, however it ended."""
    last = args.world_size - 1 == this_rank()
    if last:
        install_metrics_writer(partial(_metrics_writer, args, job_of(args, share_of_tokens), lines, see_loss))
    wait = _SECONDS_AFTER_A_FAILURE
    panel = ExitStack()
    if this_rank() == 0:
        panel.enter_context(live_panel(f"{args.norm_scheme}, {args.num_layers} layers"))
    try:
        yield
        wait = _SECONDS_AT_THE_END
    except SystemExit:
        wait = _SECONDS_AT_THE_END
        raise
    finally:
        for line in get_tensorboard_writer().summary.lines(args.save) if last else ():
            lines.send(line)
        lines.end(wait)
        panel.close()
