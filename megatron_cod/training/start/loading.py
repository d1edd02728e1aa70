"""A checkpoint of any layout and scheme as Megatron's own model, for analysis and evaluation."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import megatron.training.training as loop
import torch
from megatron.core.enums import ModelType
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.training.argument_utils import pretrain_cfg_container_from_args

from megatron_cod.analysis.depth.traced import TracedModel
from megatron_cod.args import MegatronArgs
from megatron_cod.checkpoint import selection
from megatron_cod.checkpoint.directory import RELEASE, is_dcp, read_tracker
from megatron_cod.errors import Phase, UserError, megatron_refusals
from megatron_cod.launch.single_process import launch_alone
from megatron_cod.schemes.design import design_from_args
from megatron_cod.schemes.residual import set_training_step
from megatron_cod.schemes.streams import open_outside, spread
from megatron_cod.schemes.table import import_modules
from megatron_cod.training import before_megatron
from megatron_cod.training.flags.imports import modules_of
from megatron_cod.training.flags.model_options import TOKENIZER, keys_beside_the_model, matches
from megatron_cod.training.flags.parser import build_parser
from megatron_cod.training.flags.recipe_files import load_recipe
from megatron_cod.training.flags.recipes import recipe_flags
from megatron_cod.training.start.checks import Need
from megatron_cod.training.start.prepare import prepare
from megatron_cod.training.task import Program

_RECIPES = (selection.RESOLVED, "recipe.yaml")
"""The file beside checkpoints that describes the model, of a run or an import."""

WEIGHTS_ALONE = ("--skip-train", "--no-load-optim", "--no-load-rng", "--eval-iters", "0", "--num-workers", "0")
"""Megatron's flags for a model without optimizer, gradients and data."""

MODEL_ALONE = Program(program="megatron_cod", introduction="")
"""A start that builds a model and does not train it."""


def locate(load: str | Path, step: int | None) -> tuple[Path, Path]:
    """(run's directory, checkpoint in it) for a run's directory or an ``iter_N`` in it.

    step: of the run's, instead of the newest. UserError where there is none.
    """
    folder = Path(load)
    if folder.name.startswith("iter_") and folder.name.removeprefix("iter_").isdigit():
        folder, step = folder.parent, int(folder.name.removeprefix("iter_"))
    if not folder.is_dir():
        raise UserError(f"checkpoint {load} does not exist")
    where = argparse.Namespace(load=str(folder), ckpt_step=step, pretrained_checkpoint=None, save=None)
    checkpoint = selection.checkpoint_to_load(where)
    if checkpoint is None:
        raise UserError(f"{folder} holds no finished checkpoint")
    if is_dcp(checkpoint):
        raise UserError(
            f"{checkpoint} is in the format torch_dcp, which only training with --use-torch-fsdp2 reads; a run with "
            "--no-save-optim and no --ckpt-format saves weights that every program reads"
        )
    return folder, checkpoint


def model_flags(folder: Path, checkpoint: Path, kept: Sequence[str] = (), unset: Sequence[str] = ()) -> list[str]:
    """Flags that build the model of a checkpoint at any layout, and load it.

    kept: options that stay although they are of training, as ``model_options`` has them. unset: keys to omit besides.
    UserError without a file that describes the model.
    """
    known = [folder / name for name in _RECIPES if (folder / name).is_file()]
    if not known:
        raise UserError(
            f"{folder} has no {selection.RESOLVED}, which has the settings of its model; "
            f"put a recipe there as {_RECIPES[1]}"
        )
    recipe = load_recipe(known[0])
    import_modules(modules_of(recipe))
    parser = build_parser()
    dropped = keys_beside_the_model(recipe, parser, kept)
    flags = recipe_flags(recipe, parser, [*dropped, *unset])
    saved = selection.saved_state(checkpoint).get("args")
    # Megatron pads by the size of TP, which may be another one now; without the tokenizer it knows no size at all.
    for key in ("padded-vocab-size", *([] if set(TOKENIZER) <= set(kept) else ["vocab-size"])):
        size = getattr(saved, key.replace("-", "_"), None)
        flags += [f"--{key}={size}"] if key not in recipe and size else []
    number = checkpoint.name.removeprefix("iter_")
    step = ["--ckpt-step", str(int(number))] if number.isdigit() else []
    return [*flags, *WEIGHTS_ALONE, "--load", str(folder), *step]


def initialize() -> None:
    """Megatron's process groups and globals, from prepared arguments. Collective."""
    before_megatron.satisfy_make()
    try:
        loop.initialize_megatron()
    finally:
        before_megatron.forget_make()


def set_up(args: MegatronArgs, config: Any) -> tuple[list[torch.nn.Module], Any, Any]:
    """The model's chunks on this rank, optimizer and schedule. Collective."""
    found = loop.setup_model_and_optimizer(
        ModelType.encoder_or_decoder,
        checkpointing_context={},
        cfg_container=pretrain_cfg_container_from_args(args, config),
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
    )
    return found[:3]


def build(args: MegatronArgs, config: Any) -> list[torch.nn.Module]:
    """The model's chunks on this rank with the weights of the checkpoint, in eval mode. Collective."""
    with redirect_stdout(io.StringIO()), megatron_refusals(Phase.SET_UP):
        initialize()
        with selection.readable(args.load):
            model, *_ = set_up(args, config)
    set_training_step(model, args.iteration)  # how far a residual warm-up was
    for chunk in model:
        chunk.eval().requires_grad_(False)
    return model


_IN_FP32 = ("bf16", "fp16", "fp8*", "fp4*", "first_last_layers_bf16", "num_layers_at_*", "te_precision_config_file")
"""Options that a model omits to be computed in fp32; its weights are those of the checkpoint anyway."""


def _reduced(folder: Path) -> list[str]:
    """The keys of a run's recipe that ask for less than fp32."""
    known = [folder / name for name in _RECIPES if (folder / name).is_file()]
    recipe = load_recipe(known[0]) if known else {}
    return [key for key in recipe if matches(key.replace("-", "_"), _IN_FP32)]


def load_megatron(folder: Path, step: int | None, length: int, in_fp32: bool = False) -> tuple[Any, Any]:
    """(GPTModel in eval mode, arguments) of a run's directory in this one process, for up to ``length`` tokens.

    in_fp32: for any precision of the run.
    Raises UserError where there is no checkpoint, no file describes its model, or Megatron refuses.
    """
    run, checkpoint = locate(folder, step)
    flags = [
        *model_flags(run, checkpoint, unset=_reduced(run) if in_fp32 else ()),
        *("--tokenizer-type", "NullTokenizer", "--micro-batch-size", "1", "--global-batch-size", "1"),
        *("--seq-length", str(length), "--logging-level", "40"),
    ]
    launch_alone()
    start = prepare(flags, MODEL_ALONE, 1, frozenset({Need.MACHINE}), quiet=True)
    inner = build(start.args, start.model_config)[0]
    while hasattr(inner, "module"):
        inner = inner.module
    return inner, start.args


def trace_megatron(folder: Path, step: int | None, length: int) -> TracedModel:
    """The same as blocks that can be run alone, for schemes that no stock architecture computes."""
    model, args = load_megatron(folder, step, length)
    streams = design_from_args(args).streams
    if streams > 1:
        open_outside(model)

    def run(tokens: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        embedded = spread(model.embedding(tokens, positions), streams) if streams > 1 else None
        return model(tokens, positions, None, decoder_input=embedded)[..., : args.vocab_size]

    return TracedModel(
        run, model.decoder.layers, batch_first=False, vocab_size=args.vocab_size, module=model, streams=streams
    )


@torch.no_grad()
def megatron_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [b, s, v] in fp32 of the checkpoint in ``folder`` (a run's directory or an ``iter_N``), in this process.

    Once a process, as Megatron keeps its state globally. UserError where its model is not built here.
    """
    if folder.name == RELEASE and read_tracker(folder.parent) == RELEASE:
        folder = folder.parent  # as an import wrote it
    model, _ = load_megatron(folder, None, tokens.shape[1], in_fp32=True)
    device = next(model.parameters()).device
    positions = torch.arange(tokens.shape[1], device=device).expand(tokens.shape)
    return model(tokens.to(device), positions, None).float().cpu()
