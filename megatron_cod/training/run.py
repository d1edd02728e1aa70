"""The training run: parse, check, train. ``pretrain.py`` is its command; what it is for, a ``Task`` says."""

import os
import sys
from contextlib import ExitStack
from functools import partial
from typing import Any

from megatron_cod.training import environment

# isort: split
from megatron.core.enums import ModelType
from megatron.training import pretrain
from megatron.training.argument_utils import pretrain_cfg_container_from_args

from megatron_cod.errors import Phase
from megatron_cod.pipeline import embedding_ranks
from megatron_cod.training import agreement, checkpoints, data_workers, random_states, rank_logs, retention
from megatron_cod.training.depth_monitor import DepthMonitor
from megatron_cod.training.depth_stats import StreamVariance
from megatron_cod.training.failures import one_line_endings, this_rank
from megatron_cod.training.faults import rewind
from megatron_cod.training.faults.events import Events
from megatron_cod.training.faults.handling import FaultHandling, put_in_order
from megatron_cod.training.faults.saving import failed_saves
from megatron_cod.training.faults.signals import UntilTraining
from megatron_cod.training.out_of_memory import in_step, told_in_one_line
from megatron_cod.training.progress import Lines
from megatron_cod.training.reporting import report_parameters, reported, say, write_scalar
from megatron_cod.training.residual_warmup import GraphWarmup
from megatron_cod.training.start.prepare import StartHooks, prepare
from megatron_cod.training.start.settings import Settings
from megatron_cod.training.steps import Steps
from megatron_cod.training.task import Task
from megatron_cod.training.warm_up import widen_warm_up


def _forget_make(model: list[Any]) -> list[Any]:
    environment.forget_make()
    return model


def _redirect_output(settings: Settings, raw: Any) -> None:
    folder = rank_logs.folder_of(settings.rank_log_dir, raw.save)
    rank_logs.redirect(folder, this_rank(), int(os.environ.get("WORLD_SIZE", "1")))


def main(task: Task) -> None:
    """Parse, check, train."""
    with one_line_endings(lambda: Phase.START), agreement.among_ranks() as agree:
        signals: list[UntilTraining] = []
        hooks = StartHooks(
            before_megatron=_redirect_output, globals_set=lambda _: signals.append(UntilTraining()), agree=agree
        )
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        start = prepare(sys.argv[1:], task, world_size, hooks=hooks)
        args, model_config, settings = start.args, start.model_config, start.settings
        for line in start.notes:
            say(line)
        if settings.dry_run:
            say(f"dry run: arguments, data and checkpoints are in order; the resolved arguments are\n{start.resolved}")
            return
        events = Events(args.save, this_rank())
        if args.save and this_rank() == 0:
            put_in_order(args, say, events)
            checkpoints.write_resolved(args.save, start.resolved)

    faults = FaultHandling(args, events, say)
    variance = StreamVariance()
    lines = Lines()
    steps = Steps(args)
    steps.first.append(signals[0].over)
    steps.each_step.append(faults.step_begins)
    steps.each_forward.append(faults.forward_begins)
    model_config.post_wrap_hooks += [steps.attach, lines.attach, report_parameters, variance.attach, faults.attach]
    if args.residual_warmup_steps and args.cuda_graph_impl != "none":
        warmup = GraphWarmup(args)
        model_config.post_wrap_hooks.append(warmup.attach)
        steps.first.append(warmup.step_begins)
        steps.each_step.append(warmup.step_begins)
    model_config.post_wrap_hooks.append(partial(random_states.skip_foreign, args, say))
    if args.depth_monitor_interval:
        monitor = DepthMonitor(args.depth_monitor_interval, args, write_scalar, lines.tell)
        model_config.post_wrap_hooks.append(monitor.attach)
        steps.each_step.append(monitor.step_begins)
    environment.satisfy_make()
    model_config.pre_wrap_hooks.append(_forget_make)
    with (
        one_line_endings(lambda: Phase.SET_UP if steps.not_begun() else Phase.TRAINING),
        faults.around_training(),
        checkpoints.readable(args.load),
        failed_saves(args),
        reported(args, task.share_of_tokens(), faults.see_loss, lines),
        ExitStack() as at_exit,
        data_workers.ended(),
        told_in_one_line(args, when=lambda: in_step(args, not steps.not_begun())),
    ):
        if args.save and args.keep_last_checkpoints and this_rank() == 0:
            keeper = retention.Retention(args, say)
            steps.each_step.append(keeper.look)
            at_exit.enter_context(keeper.until_the_end())
        cfg = pretrain_cfg_container_from_args(args, model_config)
        widen_warm_up(args, model_config)
        pretrain(
            cfg,
            rewind.passing_over(task.datasets_provider, args.save),
            ModelType.encoder_or_decoder,
            faults.watch(steps.watch(task.forward_step)),
            non_loss_data_func=variance.collect,
            process_non_loss_data_func=variance.report,
            get_embedding_ranks=partial(embedding_ranks, args),
        )
