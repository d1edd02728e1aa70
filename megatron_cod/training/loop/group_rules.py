"""Rates, weight decay and eps of the kinds of parameters of a norm scheme, in Megatron's optimizer.

Megatron's loop builds the optimizer with no word of ours between it and the checkpoint: its groups are split by what it
reads before, and get their numbers as soon as the weights are loaded, or before the first step.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_cod.args import MegatronArgs
from megatron_cod.schemes.design import design_from_args
from megatron_cod.schemes.parameter_groups import GroupRules, set_rules, split_groups
from megatron_cod.training.loop.observers import Observer, Run
from megatron_cod.training.loop.resumed_rates import schedulers


class SchemeRates(Observer):
    """Gives each kind of parameters the numbers of the norm scheme."""

    def __init__(self, run: Run, rules: GroupRules) -> None:
        self._args: MegatronArgs = run.args
        self._rules = rules
        for line in rules.lines():
            run.log(f"--norm-scheme {run.args.norm_scheme}: {line}")

    @classmethod
    def of(cls, run: Run) -> SchemeRates | None:
        """None for a scheme without rules."""
        rules = design_from_args(run.args).group_rules(run.args)
        return None if rules is None else cls(run, rules)

    def model_built(self, model: list[torch.nn.Module]) -> None:
        """Megatron builds the optimizer next, and then loads weights and optimizer."""
        split_groups(self._args)
        inner: Any = model[0]
        while hasattr(inner, "module"):
            inner = inner.module

        def weights_loaded(*_: Any) -> None:
            handle.remove()
            self._set()

        handle = inner.register_load_state_dict_post_hook(weights_loaded)

    def training_begins(self) -> None:
        self._set()

    def _set(self) -> None:
        for scheduler in schedulers():
            use_rules(scheduler, self._rules, self._args)


def use_rules(scheduler: Any, rules: GroupRules, args: MegatronArgs) -> None:
    """Write the rules into the optimizer of Megatron's scheduler. A second time it does nothing."""
    set_rules(scheduler.optimizer.param_groups, rules, args)
    scheduler.step(0)  # the rates of the step at hand
