"""What ``--hf-export-interval`` needs, asked before the start: a training may run for days before its first export."""

from __future__ import annotations

from argparse import Namespace

from megatron_cod.args import MegatronArgs
from megatron_cod.checkpoint.scheme_record import recorded_identity
from megatron_cod.errors import UserError
from megatron_cod.huggingface.folding import folding_of
from megatron_cod.huggingface.megatron_args import architecture_of_args

_FLAG = "--hf-export-interval"


def check_interval(args: MegatronArgs) -> None:
    """UserError for an interval without checkpoints to export. args: the plain parse."""
    every = args.hf_export_interval
    if every is None:
        return
    if not args.save:
        raise UserError(f"{_FLAG} {every} needs --save: what is exported are the checkpoints there")
    if args.save_interval and every % args.save_interval:
        raise UserError(
            f"{_FLAG} {every} is not a multiple of --save-interval {args.save_interval}: only checkpoints are exported"
        )
    if args.ckpt_format != "torch_dist":
        raise UserError(f"{_FLAG} {every}: no export reads --ckpt-format {args.ckpt_format}; omit one of them")


def check_model(args: MegatronArgs) -> list[str]:
    """A line for the log where exports begin late; UserError for a model that no stock architecture computes.

    args: after Megatron's validation, with what checkpoints record.
    """
    if args.hf_export_interval is None:
        return []
    saved = Namespace(**vars(args))
    try:
        folding_of(recorded_identity(saved), args.num_layers)
        architecture_of_args(saved)
    except UserError as error:
        raise UserError(f"{_FLAG} {args.hf_export_interval}: {error}") from None
    first = first_step(args)
    if first <= args.hf_export_interval:
        return []
    return [f"{_FLAG}: no export before step {first}, the end of --residual-warmup-steps: no stock model computes it"]


def first_step(args: MegatronArgs) -> int:
    """The first step whose checkpoint can be exported: the end of a residual warm-up."""
    return (args.residual_warmup_steps or 0) * args.num_layers
