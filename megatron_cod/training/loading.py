"""A checkpoint of any layout and scheme as Megatron's own model in this one process, to be looked into."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import megatron.training.training as loop
import torch
from megatron.core.enums import ModelType
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.training.argument_utils import pretrain_cfg_container_from_args
from megatron.training.arguments import parse_and_validate_args

from megatron_cod import cpu
from megatron_cod.analysis.depth.traced import TracedModel
from megatron_cod.model import model_config_from_args
from megatron_cod.schemes.residual import set_training_step
from megatron_cod.training import (
    checkpoints,
    environment,
)
from megatron_cod.training.arguments import add_arguments
from megatron_cod.training.command_line import resolve_command_line
from megatron_cod.training.failures import one_line
from megatron_cod.training.launch import launch_alone
from megatron_cod.training.recipes import load_recipe

_TRAINING = """
save load tensorboard wandb metrics keep-last log- eval- pipeline-model-parallel tensor-model-parallel mock-data
expert-model-parallel expert-tensor-parallel num-virtual-stages num-layers-per-virtual decoder-first-pipeline
decoder-last-pipeline account-for- sequence-parallel context-parallel recompute- use-distributed-optimizer overlap-
data-path train- valid-data test-data split tokenizer global-batch micro-batch rampup lr min-lr num-workers exit-
depth-monitor finetune no-load no-save ckpt-step recipe seq-length sft- no-sft- train-epochs pretrained-checkpoint
chat-template
"""
"""Beginnings of resolved arguments that say how a model was trained, and not what it is."""


def load_megatron(folder: Path, step: int | None, length: int) -> tuple[Any, Any]:
    """(GPTModel in eval mode, arguments) of a run's directory, for sequences of up to ``length`` tokens.

    Needs ``resolved_args.yaml``, which our runs keep beside their checkpoints. Raises ValueError without it, and for what
    Megatron refuses.
    """
    if folder.name.startswith("iter_"):
        folder, step = folder.parent, int(folder.name.removeprefix("iter_"))
    recipe = folder / checkpoints.RESOLVED
    if not recipe.is_file():
        raise ValueError(f"{folder} has no {checkpoints.RESOLVED}, which tells how its model is built")
    unset = [key for key in load_recipe(recipe) if key.startswith(tuple(_TRAINING.split()))]
    flags = [
        *("--recipe", str(recipe), *(["--unset", *unset] if unset else []), "--load", str(folder), "--mock-data"),
        *("--tokenizer-type", "NullTokenizer", "--train-iters", "1", "--eval-iters", "0", "--lr", "0"),
        *("--micro-batch-size", "1", "--global-batch-size", "1", "--no-load-optim", "--no-load-rng"),
        *("--seq-length", str(length), "--logging-level", "40"),
        *(["--ckpt-step", str(step)] if step is not None else []),
    ]
    launch_alone()
    command = sys.argv
    with redirect_stdout(io.StringIO()):  # Megatron prints hundreds of lines
        try:
            cpu.install()
            sys.argv = [command[0], *resolve_command_line(flags)[0]]
            args = parse_and_validate_args(extra_args_provider=add_arguments)
            config, _ = model_config_from_args(args, own_layers=checkpoints.lacks_norm_state(args))
            checkpoints.check_load(args, False)
            environment.satisfy_make()
            loop.initialize_megatron()
            with checkpoints.readable(args.load):
                model, *_ = loop.setup_model_and_optimizer(
                    ModelType.encoder_or_decoder,
                    checkpointing_context={},
                    cfg_container=pretrain_cfg_container_from_args(args, config),
                    pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
                )
        except AssertionError as error:
            raise ValueError(one_line(error)) from None
        finally:
            sys.argv = command
    set_training_step(model, args.iteration)  # how far a residual warm-up was
    inner = model[0]
    while hasattr(inner, "module"):
        inner = inner.module
    return inner.eval().requires_grad_(False), args


def trace_megatron(folder: Path, step: int | None, length: int) -> TracedModel:
    """The same as blocks that can be run alone, for schemes that no stock architecture computes."""
    model, args = load_megatron(folder, step, length)

    def run(tokens: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        return model(tokens, positions, None)[..., : args.vocab_size]

    return TracedModel(run, model.decoder.layers, batch_first=False, vocab_size=args.vocab_size, module=model)
