"""Another schedule of the learning rate on resume: told before the start, and let through where a flag asks for it.

Megatron finds the groups of its optimizer in a checkpoint by their rates, so that no other ``--lr`` could be chosen: under
``--override-opt_param-scheduler`` the saved groups get this run's rates before they are compared, under
``--use-checkpoint-opt_param-scheduler`` this run's groups get the saved ones.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_cod.args import MegatronArgs
from megatron_cod.errors import UserError
from megatron_cod.training.observers import Observer, Run

_WAYS_OUT = "give --override-opt_param-scheduler for this one, --use-checkpoint-opt_param-scheduler for the saved one"
_RATES = ("max_lr", "min_lr")


def _scheduler_of(args: Any) -> dict[str, Any]:
    """What Megatron's scheduler saves, reckoned from arguments as ``training.get_optimizer_param_scheduler`` does."""
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
    """UserError, naming the flags, where Megatron would refuse to go on under another schedule.

    saved, state: the checkpoint's arguments, and what else it holds beside the tensors. args: after validation.
    """
    asks: Any = args
    if args.no_load_optim or args.finetune or asks.override_opt_param_scheduler:
        return
    if asks.use_checkpoint_opt_param_scheduler:
        return
    before, now = state.get("opt_param_scheduler"), _scheduler_of(args)
    if not before:
        return
    differ = [name for name in now if name in before and before[name] != now[name]]
    if differ:
        raise UserError(
            f"checkpoint {checkpoint} was trained with {_told(differ, before, now, saved, args)}, another schedule of the "
            f"learning rate: {_WAYS_OUT}"
        )


def _told(differ: list[str], before: Mapping[str, Any], now: Mapping[str, Any], saved: Any, args: Any) -> str:
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


class ResumedRates(Observer):
    """Lets Megatron's optimizer go on with groups of other rates, where a flag says whose rates are meant."""

    def __init__(self, keeps_saved: bool) -> None:
        self._keeps_saved = keeps_saved

    @classmethod
    def of(cls, run: Run) -> ResumedRates | None:
        """None where no checkpoint is loaded, or no flag asks for it."""
        args: Any = run.args
        asked = args.override_opt_param_scheduler or args.use_checkpoint_opt_param_scheduler
        loads = (args.load or args.pretrained_checkpoint) and not (args.no_load_optim or args.finetune)
        return cls(not args.override_opt_param_scheduler) if asked and loads else None

    def model_built(self, model: list[torch.nn.Module]) -> None:
        """Wait for the weights: Megatron loads the optimizer right after them."""
        inner: Any = model[0]
        while hasattr(inner, "module"):
            inner = inner.module

        def weights_loaded(*_: Any) -> None:
            handle.remove()
            for optimizer in _optimizers():
                match_rates(optimizer, self._keeps_saved)

        handle = inner.register_load_state_dict_post_hook(weights_loaded)


def _optimizers() -> Iterator[Any]:
    """Megatron's optimizers of this rank: nothing that we are given leads to them yet, so all objects are asked."""
    for one in gc.get_objects():
        if isinstance(one, OptimizerParamScheduler) and one.optimizer is not None:
            yield from _parts(one.optimizer)


def _parts(optimizer: Any) -> Iterator[Any]:
    chained = getattr(optimizer, "chained_optimizers", None)
    if chained is None:
        yield optimizer
    else:
        for one in chained:
            yield from _parts(one)


def match_rates(optimizer: Any, keeps_saved: bool) -> None:
    """Have the next ``load_state_dict`` of a Megatron optimizer find groups that differ in their rates alone.

    keeps_saved: this run's groups get the saved rates, not the other way round.
    """
    load: Callable[..., Any] = optimizer.load_state_dict

    def matched(state: Any, *rest: Any, **kwargs: Any) -> Any:
        del optimizer.load_state_dict
        saved = (state.get("optimizer") or state).get("param_groups", [])
        groups = optimizer.param_groups
        _hand_over(saved, groups) if keeps_saved else _hand_over(groups, saved)
        return load(state, *rest, **kwargs)

    optimizer.load_state_dict = matched


def _hand_over(source: list[dict[str, Any]], target: list[dict[str, Any]]) -> None:
    """Copy rates between groups that are the same otherwise; of several such the lower rate is the lower one's."""
    by_kind: list[dict[tuple[Any, ...], list[dict[str, Any]]]] = [{}, {}]
    for groups, kinds in zip((source, target), by_kind, strict=True):
        for one in sorted(groups, key=lambda group: group.get("max_lr") or 0.0):
            kinds.setdefault(_kind(one), []).append(one)
    for kind, theirs in by_kind[1].items():
        ours = by_kind[0].get(kind, [])
        if len(ours) == len(theirs):  # else Megatron says what is missing
            for one, other in zip(ours, theirs, strict=True):
                other.update({name: one[name] for name in _RATES if name in one})


def _kind(group: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("wd_mult", "lr_mult", "is_expert_parallel", "is_decoupled_lr", "optimizer", "start_wd", "end_wd")
    return tuple(group.get(name, group.get(f"pre_{name}")) for name in names)
