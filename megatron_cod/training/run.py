"""The training run: parse, check, train. ``pretrain.py`` is its command; what it is for, a ``Task`` says."""

import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from megatron_cod.training import environment

# isort: split
from megatron.core.enums import ModelType
from megatron.training import pretrain
from megatron.training.argument_utils import pretrain_cfg_container_from_args
from megatron.training.arguments import parse_and_validate_args

from megatron_cod import identity, torch_adaptations
from megatron_cod.backends.torch_context_parallel import log_line
from megatron_cod.errors import Phase
from megatron_cod.model import model_config_from_args
from megatron_cod.pipeline import embedding_ranks
from megatron_cod.training import agreement, checkpoints, data_workers, random_states, rank_logs, retention
from megatron_cod.training.argument_checks import check_built, check_layout, check_vocabulary
from megatron_cod.training.arguments import add_arguments, build_parser
from megatron_cod.training.command_line import resolve_command_line
from megatron_cod.training.depth_monitor import DepthMonitor
from megatron_cod.training.depth_stats import StreamVariance
from megatron_cod.training.devices import check_devices, check_needs_gpu
from megatron_cod.training.failures import one_line_endings, this_rank
from megatron_cod.training.faults import rewind
from megatron_cod.training.faults.events import Events
from megatron_cod.training.faults.handling import FaultHandling, check_flags, put_in_order
from megatron_cod.training.faults.saving import failed_saves
from megatron_cod.training.faults.signals import UntilTraining
from megatron_cod.training.optimizer_checks import check_offload_device, check_optimizer
from megatron_cod.training.out_of_memory import in_step, told_in_one_line
from megatron_cod.training.packages import check_packages
from megatron_cod.training.progress import Lines
from megatron_cod.training.reporting import check_wandb, report_parameters, reported, say, write_scalar
from megatron_cod.training.residual_warmup import GraphWarmup
from megatron_cod.training.save_checks import check_saving
from megatron_cod.training.schedule_checks import check_schedule
from megatron_cod.training.steps import Steps
from megatron_cod.training.task import Task
from megatron_cod.training.warm_up import widen_warm_up


def check_inputs(args: Any, task: Task) -> None:
    """Tokenizer, data and checkpoints, before any process group exists. Raises UserError with one clear line.

    Files are read by one rank a node: thousands of ranks reading the same index would be a load of its own.
    """
    model_size = check_vocabulary(args)
    if int(os.environ.get("LOCAL_RANK", "0")) != 0:
        return
    task.check_data(args, model_size)
    for line in checkpoints.check_load(args, args.override_scheme_check):
        say(line)


def _forget_make(model: list[Any]) -> list[Any]:
    environment.forget_make()
    return model


def main(task: Task) -> None:
    """Parse, check, train."""
    with one_line_endings(lambda: Phase.START), agreement.among_ranks() as agree:
        check_devices()
        flags, raw, resolved = resolve_command_line(sys.argv[1:], task)
        check_needs_gpu(raw)
        check_packages(raw)
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        check_layout(raw, world_size)
        flags = task.prepare(flags, raw)
        raw = build_parser(task).parse_args(flags)
        check_schedule(raw)
        check_optimizer(raw)
        check_offload_device(raw)
        check_saving(raw)
        check_flags(raw)
        check_wandb(raw, this_rank(), world_size)
        checkpoints.check_save(raw.save, raw.load, step=raw.ckpt_step, finetune=raw.finetune)
        rank_logs.redirect(rank_logs.folder_of(raw.rank_log_dir, raw.save), this_rank(), world_size)
        if raw.save and raw.tensorboard_dir is None:
            flags += ["--tensorboard-dir", str(Path(raw.save) / "tensorboard")]
        torch_adaptations.install()
        sys.argv = [sys.argv[0], *flags]
        args = parse_and_validate_args(extra_args_provider=partial(add_arguments, program=task))
        until_training = UntilTraining()
        model_config, line = model_config_from_args(args, own_layers=checkpoints.lacks_norm_state(args))
        check_built(args, model_config.transformer)
        say(line)
        if gathering := log_line(model_config.transformer):
            say(gathering)
        identity.record(args)
        check_inputs(args, task)
        agree(args)
        if args.dry_run:
            say(f"dry run: arguments, data and checkpoints are in order; the resolved arguments are\n{resolved}")
            return
        events = Events(args.save, this_rank())
        if args.save and this_rank() == 0:
            put_in_order(args, say, events)
            checkpoints.write_resolved(args.save, resolved)

    faults = FaultHandling(args, events, say)
    variance = StreamVariance()
    lines = Lines()
    steps = Steps(args)
    steps.first.append(until_training.over)
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
