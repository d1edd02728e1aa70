"""Ways to save that would fail at the first save, or only when the run is resumed; told before anything is built."""

from __future__ import annotations

import importlib.util
from typing import Any

from megatron_cod import torch_adaptations


def check_saving(args: Any) -> None:
    """ValueError, naming the flags, for a combination that does not save, or whose checkpoints cannot be loaded.

    args: the plain parse of the command line: Megatron's validation turns some of these off with nothing but a warning.
    """
    if not args.save:
        return
    _check_format(args)
    _check_asynchronous(args)
    _check_non_persistent(args)


def _check_format(args: Any) -> None:
    chosen = f"--ckpt-format {args.ckpt_format}"
    if args.use_torch_fsdp2:
        _check_fsdp2(args)
    elif args.use_megatron_fsdp:
        _check_megatron_fsdp(args)
    elif args.ckpt_format != "torch_dist":
        what = (
            "is Megatron's old format, which is not checked or resharded here"
            if args.ckpt_format == "torch"
            else ("is for --use-torch-fsdp2" if args.ckpt_format == "torch_dcp" else "is for --use-megatron-fsdp")
        )
        raise ValueError(f"{chosen} {what}: leave it out, for torch_dist")


def _check_fsdp2(args: Any) -> None:
    flag, weights = "--use-torch-fsdp2", "for the weights alone give --no-save-optim"
    if args.ckpt_format == "torch_dist":
        if not args.no_save_optim:
            raise ValueError(
                f"{flag} cannot save its optimizer state in --ckpt-format torch_dist: give --ckpt-format torch_dcp; {weights}"
            )
    elif not torch_adaptations.applies():
        raise ValueError(
            f"{flag} with Transformer Engine or Apex saves in --ckpt-format torch_dcp what Megatron-Core 0.19.2 cannot load: "
            f"leave out --save, or {weights} and no --ckpt-format"
        )


def _check_megatron_fsdp(args: Any) -> None:
    if args.swiglu:
        raise ValueError(
            "--use-megatron-fsdp does not save a model with --swiglu: ranks without a part of a weight join other "
            "collectives than the rest in Megatron-Core 0.19.2, and all hang; leave out --save, or give "
            "--use-distributed-optimizer without it"
        )


def _check_asynchronous(args: Any) -> None:
    if not args.async_save:
        return
    if not args.use_persistent_ckpt_worker:
        raise ValueError("--async-save needs --use-persistent-ckpt-worker: without it Megatron saves synchronously")
    if args.async_strategy == "nvrx" and importlib.util.find_spec("nvidia_resiliency_ext") is None:
        raise ValueError(
            "--async-save with --async-strategy nvrx, Megatron's default, needs the package nvidia-resiliency-ext: "
            "give --async-strategy mcore"
        )


def _check_non_persistent(args: Any) -> None: ...
