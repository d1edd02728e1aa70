"""The training run: parse, check, train. ``pretrain.py`` is its command; a ``Task`` defines what it is for."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from megatron_cod.training import before_megatron

# isort: split
from megatron.core.enums import ModelType
from megatron.training import pretrain
from megatron.training.argument_utils import pretrain_cfg_container_from_args

from megatron_cod import __version__
from megatron_cod.checkpoint import selection
from megatron_cod.checkpoint.events import Events
from megatron_cod.checkpoint.readme import write_readme
from megatron_cod.console import log_rank0, this_rank
from megatron_cod.errors import Phase
from megatron_cod.launch import rank_logs, start_agreement
from megatron_cod.launch.console_relay import Lines
from megatron_cod.launch.exit_codes import one_line_endings
from megatron_cod.launch.single_process import launch_unless_launched
from megatron_cod.model import SchemeModelConfig
from megatron_cod.pipeline import embedding_ranks
from megatron_cod.training.data.data_workers import DataWorkers
from megatron_cod.training.data.passed_over import passing_over
from megatron_cod.training.exports.observer import Exports
from megatron_cod.training.faults.checkpoint_deletion import Retention
from megatron_cod.training.faults.handling import Hangs, put_in_order
from megatron_cod.training.faults.nonfinite import StepGuard
from megatron_cod.training.faults.out_of_memory import in_step, reported_in_one_line
from megatron_cod.training.faults.save_claim import SaveClaim
from megatron_cod.training.faults.saving import failed_saves
from megatron_cod.training.faults.signals import Signals, UntilTraining
from megatron_cod.training.faults.spikes import SpikeWarnings
from megatron_cod.training.faults.time_limit import TimeLimit
from megatron_cod.training.loop.group_rules import SchemeRates
from megatron_cod.training.loop.observers import Row, Run, around, observers_of
from megatron_cod.training.loop.odd_width_warm_up import widen_warm_up
from megatron_cod.training.loop.random_states import ForeignRandomStates
from megatron_cod.training.loop.residual_warmup import GraphWarmup
from megatron_cod.training.loop.resumed_rates import ResumedRates
from megatron_cod.training.loop.step_hooks import Steps
from megatron_cod.training.monitoring.depth_monitor import DepthMonitor
from megatron_cod.training.monitoring.reporting import Report
from megatron_cod.training.monitoring.stream_variance import StreamVariance
from megatron_cod.training.start.prepare import StartHooks, prepare
from megatron_cod.training.start.settings import Settings
from megatron_cod.training.task import Task
from megatron_cod.training.validation.evaluations import Evaluations
from megatron_cod.training.validation.fp32_logits import Fp32Logits


def _forget_make(model: list[Any]) -> list[Any]:
    before_megatron.forget_make()
    return model


def _redirect_output(settings: Settings, raw: Any) -> None:
    folder = rank_logs.folder_of(settings.rank_log_dir, raw.save)
    rank_logs.redirect(folder, this_rank(), int(os.environ.get("WORLD_SIZE", "1")))


def main(task: Task) -> None:
    """Parse, check, train."""
    with one_line_endings(lambda: Phase.START), start_agreement.among_ranks() as agree:
        launch_unless_launched()
        signals: list[UntilTraining] = []
        hooks = StartHooks(
            before_megatron=_redirect_output, globals_set=lambda _: signals.append(UntilTraining()), agree=agree
        )
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        start = prepare(sys.argv[1:], task, world_size, hooks=hooks)
        args, model_config, settings = start.args, start.model_config, start.settings
        for line in start.notes:
            log_rank0(line)
        if settings.dry_run:
            log_rank0(
                f"dry run: arguments, data and checkpoints are in order; the resolved arguments are\n{start.resolved}"
            )
            return
        claim = SaveClaim(args.save) if args.save and this_rank() == 0 else None
        events = Events(args.save, this_rank())
        if args.save and this_rank() == 0:
            put_in_order(args, log_rank0, events)
            selection.write_resolved(args.save, start.resolved)
            write_readme(Path(args.save), args.norm_scheme, __version__)

    train(Run(args, task, events, log_rank0, Lines(), signals[0], StreamVariance(), claim=claim), model_config)


OBSERVERS: tuple[Row, ...] = (
    lambda run: run.claim,  # all that is written into --save comes before its end
    lambda run: run.until_training,
    Hangs.of,
    Signals,
    Report,
    lambda run: run.variance,
    lambda run: run.evaluations,
    Fp32Logits.of,
    TimeLimit.of,
    GraphWarmup.of,
    ForeignRandomStates,
    SchemeRates.of,  # before the rates of a checkpoint are compared with this run's
    ResumedRates.of,
    DepthMonitor.of,
    StepGuard.of,  # after the monitor, which is to have written what it measured when the guard stops the run
    SpikeWarnings.of,
    Retention.of,  # within the report, whose summary counts the checkpoints that are left
    Exports.of,  # within retention, which then deletes the checkpoints that it had to leave
    lambda _: DataWorkers(),
)
"""The observers of a run, in the order in which they are called (``observers.py``)."""


def train(run: Run, model_config: SchemeModelConfig) -> None:
    """Train with the arguments and ``OBSERVERS``."""
    args, steps = run.args, Steps(run)
    with one_line_endings(lambda: steps.phase):
        run.evaluations = evaluations = Evaluations(run)
        run.observers = observers_of(run, OBSERVERS)
        model_config.post_wrap_hooks.append(steps.attach)
        before_megatron.satisfy_make()
        model_config.pre_wrap_hooks.append(_forget_make)
        with (
            around(run.observers),
            selection.readable(args.load),
            failed_saves(args),
            reported_in_one_line(args, when=lambda: in_step(args, steps.phase is Phase.TRAINING)),
        ):
            cfg = pretrain_cfg_container_from_args(args, model_config)
            widen_warm_up(args, model_config)
            pretrain(
                cfg,
                passing_over(evaluations.around_sets(run.task.datasets_provider), args.save),
                ModelType.encoder_or_decoder,
                steps.watch(run.task.forward_step),
                non_loss_data_func=evaluations.collect,
                get_embedding_ranks=partial(embedding_ranks, args),
            )
