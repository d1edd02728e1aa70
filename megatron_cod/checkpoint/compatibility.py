"""Whether a checkpoint fits a run: format, shape, function, norm scheme, optimizer state. Before a distributed start."""

import argparse
from pathlib import Path

from torch.distributed.checkpoint import FileSystemReader

from megatron_cod import __version__
from megatron_cod.args import MegatronArgs
from megatron_cod.checkpoint.directory import (
    RELEASE,
    check_files,
    is_dcp,
    same_directory,
)
from megatron_cod.checkpoint.function_record import check_function
from megatron_cod.checkpoint.optimizer_layout import check_optimizer_layout
from megatron_cod.checkpoint.place_in_data import check_place_in_data, data_warnings
from megatron_cod.checkpoint.resumed_schedule import check_resumed_schedule
from megatron_cod.checkpoint.scheme_record import recorded_identity
from megatron_cod.checkpoint.selection import checkpoint_to_load, ignored, readable, saved_state
from megatron_cod.console import this_rank
from megatron_cod.errors import UserError
from megatron_cod.schemes.design import design_from_args

# What must agree for the weights to fit; Megatron asserts some of these later, on every rank and less clearly.
_SHAPE_ARGUMENTS = ("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size", "padded_vocab_size")

_FSDP2 = "training with --use-torch-fsdp2 --ckpt-format torch_dcp"


def lacks_norm_state(args: MegatronArgs) -> bool:
    """Whether Megatron's own Transformer Engine layers could not load the checkpoint of ``--load``.

    They keep an empty ``_extra_state`` with every norm and insist on it; no other backend saves one. Then ours, which do
    without, must be built under ``pre_ln`` too.
    """
    if args.transformer_impl != "transformer_engine":
        return False
    checkpoint = checkpoint_to_load(args)
    if checkpoint is None or not (checkpoint / ".metadata").is_file():
        return False
    with readable(args.load):
        saved = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    return not any(name.startswith("decoder.final_layernorm._extra_state") for name in saved)


def check_load(args: MegatronArgs, override_scheme: bool, trains: bool = False) -> list[str]:
    """Check the checkpoint that ``--load`` would take, before any process group exists.

    trains: whether the schedule of the learning rate continues.
    Raises UserError when it is damaged, of another shape, of another function (``function_record``) or norm scheme (whose
    tensors may have the same names and shapes, so that nothing else would notice), or holds an optimizer state that does
    not fit the layout.
    Returns lines for the log.
    """
    checkpoint = checkpoint_to_load(args)
    lines = ignored(args, checkpoint)
    if checkpoint is None:
        return [*lines, f"--load {args.load}: no checkpoint there, starting from scratch"] if args.load else []
    # A run's own is checked when its directory is cleaned. One rank's reading is enough.
    elsewhere = args.dry_run or not same_directory(args.load, args.save)
    check_files(checkpoint, verify=args.verify_checkpoint and elsewhere and this_rank() == 0)
    _check_format(checkpoint, args)
    state = saved_state(checkpoint)
    saved = state.get("args")
    if saved is None:
        return [*lines, f"checkpoint {checkpoint} records no arguments: its norm scheme cannot be checked"]
    for name in _SHAPE_ARGUMENTS:
        theirs, ours = getattr(saved, name, None), getattr(args, name, None)
        if theirs is not None and ours is not None and theirs != ours:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"checkpoint {checkpoint} was trained with {flag} {theirs}, this run has {ours}")
    # The scheme first: some set other flags of the function, and the scheme is what the user knows.
    scheme = check_scheme(checkpoint, saved, args, override_scheme)
    changed = check_function(checkpoint, saved, args, args.override_model_check)
    # Megatron takes the weights alone of a release, and of --pretrained-checkpoint where --load holds nothing.
    is_resumed = checkpoint.name != RELEASE and same_directory(str(checkpoint.parent), args.load)
    if is_resumed:
        check_optimizer_layout(checkpoint, saved, state.get("content_metadata") or {}, args)
        check_place_in_data(checkpoint, saved, args)
    if trains and is_resumed:
        check_resumed_schedule(checkpoint, saved, state, args)
    return [*lines, *scheme, *changed, *differences(checkpoint, saved, args), *data_warnings(checkpoint, saved, args)]


def _check_format(checkpoint: Path, args: MegatronArgs) -> None:
    """UserError for a checkpoint in a format that Megatron takes for another one."""
    ours = args.ckpt_format in ("torch_dcp", "fsdp_dtensor")
    if is_dcp(checkpoint) and not ours:
        raise UserError(f"checkpoint {checkpoint} is in the format torch_dcp: only {_FSDP2} loads it")
    if ours and not is_dcp(checkpoint):
        raise UserError(
            f"checkpoint {checkpoint} is not in --ckpt-format {args.ckpt_format}, which {_FSDP2} loads alone"
        )


def check_scheme(checkpoint: Path, saved: argparse.Namespace, args: MegatronArgs, override: bool) -> list[str]:
    """UserError, or with ``override`` a warning, for another norm scheme, or the same one with other options.

    A checkpoint that does not record its scheme's exponent has the paper's.
    """
    theirs, ours = recorded_identity(saved), design_from_args(args).identity(args)
    if theirs == ours:
        return []
    if theirs["norm_scheme"] != ours["norm_scheme"]:
        scheme = theirs["norm_scheme"]
        line = f"checkpoint {checkpoint} was trained with --norm-scheme {scheme}, this run has {args.norm_scheme}"
        remedy = f"use {scheme}, or --override-scheme-check if you mean it"
    else:
        differ = [f"{name} {theirs[name]} (this run: {ours[name]})" for name in ours if theirs[name] != ours[name]]
        line = f"checkpoint {checkpoint} was trained with {args.norm_scheme} of {', '.join(differ)}"
        remedy = "give the same, or --override-scheme-check if you mean it"
    if not override:
        raise UserError(f"{line}; {remedy}")
    return [f"WARNING: {line}; loading it anyway (--override-scheme-check)"]


def differences(checkpoint: Path, saved: argparse.Namespace, args: MegatronArgs) -> list[str]:
    """A line for each recorded thing that differs without harm: weights are loaded, so no initialisation takes place."""
    lines = []
    policy = getattr(saved, "init_policy", None)
    if policy is not None and policy != args.init_policy:
        lines.append(f"{checkpoint} was initialised with --init-policy {policy}; {args.init_policy} has no effect here")
    version = getattr(saved, "megatron_cod_version", None)
    if version is not None and version != __version__:
        lines.append(f"{checkpoint} was saved by megatron_cod {version}, this is {__version__}")
    return lines
