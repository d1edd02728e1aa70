"""Another schedule of the learning rate on resume, refused before the start unless a flag names the schedule to use."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_cod.args import MegatronArgs
from megatron_cod.errors import UserError

_REMEDIES = "give --override-opt_param-scheduler for this one, --use-checkpoint-opt_param-scheduler for the saved one"


def _scheduler_of(args: MegatronArgs) -> dict[str, Any]:
    """What Megatron's scheduler saves, computed from arguments as ``training.get_optimizer_param_scheduler`` does."""
    unit = "iters" if args.train_iters and not args.train_samples else "samples"
    batch = args.global_batch_size if unit == "iters" else 1
    length = getattr(args, f"train_{unit}") or 0
    decay = (getattr(args, f"lr_decay_{unit}") or length) * batch
    fraction = args.lr_warmup_fraction
    return {
        "max_lr": args.lr,
        "min_lr": args.min_lr,
        "lr_decay_style": args.lr_decay_style,
        "lr_decay_steps": decay,
        "lr_warmup_steps": getattr(args, f"lr_warmup_{unit}") * batch if fraction is None else fraction * decay,
        "start_wd": args.start_weight_decay,
        "end_wd": args.end_weight_decay,
        "wd_incr_style": args.weight_decay_incr_style,
        "wd_incr_steps": length * batch,
    }


_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "max_lr": ("lr",),
    "min_lr": ("min_lr",),
    "lr_decay_style": ("lr_decay_style",),
    "lr_decay_steps": ("lr_decay_iters", "lr_decay_samples", "train_iters", "train_samples", "global_batch_size"),
    "lr_warmup_steps": ("lr_warmup_iters", "lr_warmup_samples", "lr_warmup_fraction", "global_batch_size"),
    "start_wd": ("start_weight_decay", "weight_decay"),
    "end_wd": ("end_weight_decay", "weight_decay"),
    "wd_incr_style": ("weight_decay_incr_style",),
    "wd_incr_steps": ("train_iters", "train_samples", "global_batch_size"),
}
"""A number of the scheduler -> the arguments that it is made of."""


def check_resumed_schedule(
    checkpoint: Path, saved: argparse.Namespace, state: Mapping[str, Any], args: MegatronArgs
) -> None:
    """UserError, naming the flags, where Megatron would refuse to resume under another schedule.

    saved, state: the checkpoint's arguments, and what else it holds beside the tensors. args: after validation.
    """
    raw: Any = args
    if args.no_load_optim or args.finetune or raw.override_opt_param_scheduler:
        return
    if raw.use_checkpoint_opt_param_scheduler:
        return
    before, now = state.get("opt_param_scheduler"), _scheduler_of(args)
    if not before:
        return
    differ = [name for name in now if name in before and before[name] != now[name]]
    if differ:
        raise UserError(
            f"checkpoint {checkpoint} was trained with {_described(differ, before, now, saved, args)}, another schedule of "
            f"the learning rate: {_REMEDIES}"
        )


def _described(
    differ: list[str], before: Mapping[str, Any], now: Mapping[str, Any], saved: Any, args: MegatronArgs
) -> str:
    flags: dict[str, tuple[Any, Any]] = {}
    for name in differ:
        found = {
            one: (getattr(saved, one, None), getattr(args, one))
            for one in _ARGUMENTS[name]
            if getattr(saved, one, None) != getattr(args, one)
        }
        flags |= found or {_ARGUMENTS[name][0]: (before[name], now[name])}
    pairs = [
        f"--{one.replace('_', '-')} {theirs}, and this run with {ours}"
        for one, (theirs, ours) in flags.items()
        if not (one in ("lr_decay_iters", "lr_decay_samples") and len(flags) > 1)  # Megatron fills them in
    ]
    return "; ".join(pairs)
