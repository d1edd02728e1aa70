"""The training run: parse, check, train. ``pretrain.py`` is its command."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from megatron_cod.training import environment

# isort: split
from megatron.core.enums import ModelType
from megatron.training import get_tensorboard_writer, get_tokenizer, pretrain
from megatron.training.argument_utils import pretrain_cfg_container_from_args
from megatron.training.arguments import parse_and_validate_args
from megatron.training.global_vars import get_wandb_writer

from megatron_cod import cpu, identity
from megatron_cod.analysis.metrics import PARAMETERS
from megatron_cod.depth_map import DepthMapError
from megatron_cod.model import model_config_from_args
from megatron_cod.pipeline import embedding_ranks
from megatron_cod.schemes.init_policy import resolve_init_policy
from megatron_cod.training import checkpoints, recipes, retention
from megatron_cod.training.arguments import add_arguments, build_parser
from megatron_cod.training.backend_flags import default_flags
from megatron_cod.training.batches import datasets_provider, forward_step
from megatron_cod.training.blends import check_data
from megatron_cod.training.depth_monitor import DepthMonitor
from megatron_cod.training.depth_stats import StreamVariance
from megatron_cod.training.failures import this_rank, user_errors
from megatron_cod.training.interruptions import Events, UntilTraining
from megatron_cod.training.interruptions import watched as watched_training
from megatron_cod.training.monitor import MetricsWriter, install_metrics_writer
from megatron_cod.training.parameters import count_parameters
from megatron_cod.training.preflight import check_built, check_layout, check_schedule


def say(text: str) -> None:
    """Print a line of the log, on rank 0."""
    if this_rank() == 0:
        print(text, flush=True)


def resolve_command_line(command_line: list[str]) -> tuple[list[str], Namespace, str]:
    """Defaults, then the recipe, then the command line: the flags for Megatron, their plain parse, and it as YAML.

    Raises ValueError for an unknown flag, recipe or recipe key.
    """
    parser = build_parser()
    given = parser.parse_args(command_line)
    from_recipe = []
    if given.recipe:
        from_recipe = recipes.recipe_flags(recipes.load_recipe(given.recipe), parser, given.unset)
    defaults, lines = default_flags([*from_recipe, *command_line])
    for line in lines:
        say(line)
    flags = [*defaults, *from_recipe, *command_line]
    raw = parser.parse_args(flags)
    always = {"norm_scheme": raw.norm_scheme, "init_policy": resolve_init_policy(raw.norm_scheme, raw.init_policy)[0]}
    return flags, raw, recipes.resolved_yaml(raw, parser, always)


def check_inputs(args: Any) -> None:
    """Tokenizer, data and checkpoints, before any process group exists. Raises ValueError with one clear line.

    Files are read by one rank a node: thousands of ranks reading the same index would be a load of its own.
    """
    tokenizer_size = getattr(get_tokenizer(), "vocab_size", None)
    model_size = args.padded_vocab_size or args.vocab_size
    if tokenizer_size and model_size and tokenizer_size > model_size:
        raise ValueError(
            f"the tokenizer has {tokenizer_size} tokens, the model's vocabulary only {model_size}: "
            f"raise --vocab-size or leave it to the tokenizer"
        )
    if int(os.environ.get("LOCAL_RANK", "0")) != 0:
        return
    check_data(args, model_size)
    for line in checkpoints.check_load(args, args.override_scheme_check):
        say(line)


def _metrics_writer(args: Any, inner: Any) -> MetricsWriter:
    path = Path(args.metrics_file) if args.metrics_file else Path(args.save) / "metrics.jsonl" if args.save else None
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
    return MetricsWriter(
        inner,
        path,
        train_iters=args.train_iters,
        tokens_per_step=args.global_batch_size * args.seq_length,
        log_interval=args.log_interval,
        emit=partial(print, flush=True),
    )


def _forget_make(model: list[Any]) -> list[Any]:
    environment.forget_make()
    return model


def report_parameters(model: list[Any]) -> list[Any]:
    """Megatron post-wrap hook: say and record how many parameters the model has."""
    total = count_parameters(model)
    say(f"parameters: {total:,}")
    writer = get_tensorboard_writer()
    if isinstance(writer, MetricsWriter):
        writer.add_scalar(PARAMETERS, total, 0)
    return model


def write_scalar(name: str, value: float, step: int) -> None:
    """One value to the metrics, TensorBoard and W&B, on the rank that keeps them."""
    writer, wandb = get_tensorboard_writer(), get_wandb_writer()
    if isinstance(writer, MetricsWriter):
        writer.add_scalar(name, value, step)
    if wandb:
        wandb.log({name: value}, step)


class StartMark:
    """Notes when the forward step is first called, and has ``first`` called then."""

    def __init__(self, first: Callable[[], None]) -> None:
        self._started = False
        self._first = first

    def not_yet(self) -> bool:
        return not self._started

    def watch(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The same step, noting that it ran."""

        def watched(*args: Any) -> Any:
            if not self._started:
                self._started = True
                self._first()
            return step(*args)

        return watched


def main() -> None:
    """Parse, check, train."""
    with user_errors(ValueError, AssertionError, OSError):
        flags, raw, resolved = resolve_command_line(sys.argv[1:])
        check_layout(raw, int(os.environ.get("WORLD_SIZE", "1")))
        check_schedule(raw)
        checkpoints.check_save(raw.save, raw.load, step=raw.ckpt_step, finetune=raw.finetune)
        if raw.save and raw.tensorboard_dir is None:
            flags += ["--tensorboard-dir", str(Path(raw.save) / "tensorboard")]
        cpu.install()
        sys.argv = [sys.argv[0], *flags]
        args = parse_and_validate_args(extra_args_provider=add_arguments)
        until_training = UntilTraining()
        model_config, line = model_config_from_args(args, own_layers=checkpoints.lacks_norm_state(args))
        check_built(args, model_config.transformer)
        say(line)
        identity.record(args)
        check_inputs(args)
        if args.dry_run:
            say(f"dry run: arguments, data and checkpoints are in order; the resolved arguments are\n{resolved}")
            return
        if args.save and this_rank() == 0:
            retention.clean(args.save, say, spare=args.ckpt_step)
            checkpoints.write_resolved(args.save, resolved)

    if args.world_size - 1 == this_rank():
        install_metrics_writer(partial(_metrics_writer, args))
    variance = StreamVariance()
    model_config.post_wrap_hooks += [report_parameters, variance.attach]
    watched = forward_step
    if args.depth_monitor_interval:
        monitor = DepthMonitor(args.depth_monitor_interval, write_scalar, partial(print, flush=True))
        model_config.post_wrap_hooks.append(monitor.attach)
        watched = monitor.watch(forward_step, args)
    environment.satisfy_make()
    model_config.pre_wrap_hooks.append(_forget_make)
    # Until the first step, what goes wrong is the layout or the checkpoint; after it, a traceback is what helps.
    started = StartMark(until_training.over)
    step = started.watch(watched)
    with (
        user_errors(DepthMapError),
        user_errors(RuntimeError, ValueError, AssertionError, OSError, when=started.not_yet),
        watched_training(args, Events(args.save, this_rank())),
        checkpoints.readable(args.load),
        ExitStack() as at_exit,
    ):
        if args.save and args.keep_last_checkpoints and this_rank() == 0:
            keeper = retention.Retention(args, say)
            step = keeper.watch(step)
            at_exit.enter_context(keeper.until_the_end())
        pretrain(
            pretrain_cfg_container_from_args(args, model_config),
            datasets_provider,
            ModelType.encoder_or_decoder,
            step,
            non_loss_data_func=variance.collect,
            process_non_loss_data_func=variance.report,
            get_embedding_ranks=partial(embedding_ranks, args),
        )
