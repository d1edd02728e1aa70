"""Ways to save that would fail at the first save, or only when the run is resumed; refused before anything is built."""

from __future__ import annotations

from torch.distributed.checkpoint.metadata import TensorProperties

from megatron_cod.adaptations import torch_only
from megatron_cod.args import MegatronArgs
from megatron_cod.backends.choice import have_transformer_engine
from megatron_cod.errors import UserError


def check_saving(args: MegatronArgs) -> None:
    """UserError, naming the flags, for a combination that does not save, or whose checkpoints cannot be loaded.

    args: the plain parse of the command line: Megatron's validation turns some of these off with nothing but a warning.
    """
    _check_strictness(args)
    _check_tensors(args)
    if not args.save:
        return
    _check_optimizer(args)
    _check_format(args)
    _check_asynchronous(args)
    _check_non_persistent(args)


def _check_strictness(args: MegatronArgs) -> None:
    asked, default = args.dist_ckpt_strictness, "assume_ok_unexpected"
    if (args.save or args.load) and asked != default and hasattr(TensorProperties(), "strides"):
        raise UserError(
            f"--dist-ckpt-strictness {asked}: Megatron-Core 0.19.2 cannot compare checkpoints of this torch, which record "
            f"strides, and loads none of them so; omit it ({default})"
        )


def _check_tensors(args: MegatronArgs) -> None:
    for name in ("save_activations_interval", "save_dgrads_interval"):
        if getattr(args, name) and not have_transformer_engine():
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} needs Transformer Engine, whose layers are all that Megatron looks for")


def _check_optimizer(args: MegatronArgs) -> None:
    if args.optimizer == "sgd" and not args.no_save_optim:
        raise UserError(
            "--optimizer sgd does not resume: Megatron-Core 0.19.2 cannot load its state; give --no-save-optim, and "
            "--no-load-optim with --load, or omit --save"
        )


_FORMATS = {
    "torch": "is Megatron's old format, which is not checked and resharded here",
    "torch_dcp": "is for --use-torch-fsdp2",
    "fsdp_dtensor": "is for --use-megatron-fsdp",
}


def _check_format(args: MegatronArgs) -> None:
    if args.use_torch_fsdp2:
        _check_fsdp2(args)
    elif args.use_megatron_fsdp:
        _check_megatron_fsdp(args)
    elif args.ckpt_format in _FORMATS:
        raise UserError(f"--ckpt-format {args.ckpt_format} {_FORMATS[args.ckpt_format]}: omit it, for torch_dist")


def _check_fsdp2(args: MegatronArgs) -> None:
    flag, weights = "--use-torch-fsdp2", "or --no-save-optim, for the weights alone"
    if args.optimizer != "adam" and not args.no_save_optim:
        raise UserError(f"{flag} cannot resume the state of --optimizer {args.optimizer}: give adam, {weights}")
    if args.ckpt_format == "torch_dist":
        if not args.no_save_optim:
            raise UserError(f"{flag} cannot save its optimizer in torch_dist: give --ckpt-format torch_dcp, {weights}")
    elif not torch_only.applies():
        raise UserError(
            f"{flag} with Transformer Engine or Apex saves in torch_dcp what Megatron-Core 0.19.2 cannot load: omit "
            f"--ckpt-format, and --save, {weights}"
        )


def _check_megatron_fsdp(args: MegatronArgs) -> None:
    if args.swiglu:
        raise UserError(
            "--use-megatron-fsdp does not save a model with --swiglu: ranks without a part of a weight join other "
            "collectives than the rest in Megatron-Core 0.19.2, and all hang; omit --save, or give "
            "--use-distributed-optimizer without it"
        )


def _check_asynchronous(args: MegatronArgs) -> None:
    if args.async_save:
        raise UserError(
            "--async-save is not supported: Megatron-Core 0.19.2 saves synchronously anyway without "
            "--use-persistent-ckpt-worker, and with it a run waits forever once that worker has failed; omit it"
        )


def _check_non_persistent(args: MegatronArgs) -> None:
    if args.non_persistent_save_interval or args.non_persistent_ckpt_type:
        raise UserError(
            "--non-persistent-save-interval and --non-persistent-ckpt-type are not supported: such checkpoints are not "
            "checked when a run is resumed; give a shorter --save-interval with --keep-last-checkpoints"
        )
