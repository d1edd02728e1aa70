"""A changed learning-rate schedule on resume, for runs that allow it with a flag.

Megatron finds the groups of its optimizer in a checkpoint by their rates, so that no other ``--lr`` could be chosen: under
``--override-opt_param-scheduler`` the saved groups get this run's rates before they are compared, under
``--use-checkpoint-opt_param-scheduler`` this run's groups get the saved ones.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_cod.args import MegatronArgs
from megatron_cod.training.loop.observers import Observer, Run

_RATES = ("max_lr", "min_lr")


class ResumedRates(Observer):
    """Lets Megatron's optimizer continue with groups of other rates, where a flag names the rates to use."""

    def __init__(self, keeps_saved: bool) -> None:
        self._keeps_saved = keeps_saved

    @classmethod
    def of(cls, run: Run) -> ResumedRates | None:
        """None where no checkpoint is loaded, or no flag asks for it."""
        args: MegatronArgs = run.args
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
            for scheduler in schedulers():
                for optimizer in _parts(scheduler.optimizer):
                    match_rates(optimizer, self._keeps_saved)

        handle = inner.register_load_state_dict_post_hook(weights_loaded)


def schedulers() -> Iterator[Any]:
    """Megatron's schedulers of this rank, which have its optimizers: nothing that we are given leads to them before the
    first step, so all objects are asked."""
    for one in gc.get_objects():
        if isinstance(one, OptimizerParamScheduler) and one.optimizer is not None:
            yield one


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
        if len(ours) == len(theirs):  # else Megatron names what is missing
            for one, other in zip(ours, theirs, strict=True):
                other.update({name: one[name] for name in _RATES if name in one})


def _kind(group: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("wd_mult", "lr_mult", "is_expert_parallel", "is_decoupled_lr", "optimizer", "start_wd", "end_wd")
    return tuple(group.get(name, group.get(f"pre_{name}")) for name in names)
