"""NaN and infinity in a step: that they do not get into the weights, and where they came from.

Where Megatron has the step's gradients ready, on all ranks at once, one number of them and of the losses is reduced over
the world: what is not finite in a layer is in one of them too. Activations are not read. Only when that number shows
trouble is the step computed again to find the layer (``nonfinite_search.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from megatron.core.utils import get_model_config

from megatron_cod.args import MegatronArgs
from megatron_cod.checkpoint.events import Events
from megatron_cod.errors import UserError
from megatron_cod.launch.scheduler import this_host
from megatron_cod.training.faults.nonfinite_search import (
    StepRecord,
    broken_gradients,
    search,
    whole_gradients,
    zero_if_finite,
)
from megatron_cod.training.flags.fault_flags import POLICIES
from megatron_cod.training.loop.observers import Observer, Run


class NonFiniteError(UserError):
    """A step that cannot be used; its text is the line the user sees."""


@dataclass(frozen=True)
class Sighting:
    """What one rank saw in a step. Layers are global numbers; layer 0 is the embedding."""

    rank: int
    host: str
    outputs: list[int]
    """Layers whose output is not finite, from the lowest."""
    loss: bool
    gradients: list[int]
    """Layers behind whose output the gradient is not finite, from the highest."""
    parameters: list[str]
    """Parameters with such a gradient, the first few."""
    repeated: bool | None = None
    """Whether the step was not finite here when it was computed again; None where it was not."""


def origin(sightings: Sequence[Sighting]) -> tuple[str, list[Sighting]]:
    """The first thing that went wrong, as text, and the sightings of it.

    In the order of computation: layers upwards, the loss, the gradients downwards; a gradient that is broken with sound
    inputs last. Of a replica's ranks only those that computed it themselves count, not those it was summed into.
    """
    outputs = [one.outputs[0] for one in sightings if one.outputs]
    if outputs:
        layer = min(outputs)
        name = f"the output of layer {layer}" if layer else "the output of the embedding"
        return name, [one for one in sightings if one.outputs[:1] == [layer]]
    losses = [one for one in sightings if one.loss]
    if losses:
        return "the loss", losses
    gradients = [one.gradients[0] for one in sightings if one.gradients]
    if gradients:
        layer = max(gradients)
        return f"the gradient behind layer {layer}", [one for one in sightings if one.gradients[:1] == [layer]]
    broken = [one for one in sightings if one.parameters]
    return f"the gradient of {broken[0].parameters[0]}" if broken else "a gradient", broken


class StepGuard(Observer):
    """``--on-nonfinite``: stops the run before such a step is taken, or skips the step."""

    def __init__(self, policy: str, most: int, args: MegatronArgs, events: Events, log: Callable[[str], None]) -> None:
        """most: steps in a row that may be omitted. log: prints a line on rank 0."""
        assert policy in POLICIES
        self._policy, self._most, self._args = policy, most, args
        self._events, self._log = events, log
        self._model: list[Any] = []
        self._seen = StepRecord()
        self._skipped = 0

    @classmethod
    def of(cls, run: Run) -> StepGuard | None:
        """Not with fp16, whose loss scaler has such steps by design, and skips them."""
        args = run.args
        policy = "ignore" if args.fp16 else args.on_nonfinite
        return None if policy == "ignore" else cls(policy, args.most_skipped_steps, args, run.events, run.log)

    def model_built(self, model: list[torch.nn.Module]) -> None:
        """Whose gradients to check."""
        self._model = model

    def gradients_ready(self) -> None:
        """Check them, and have the optimizer skip the step."""
        if self._check():
            leave_out(get_model_config(self._model[0]).grad_scale_func.__self__)

    def wrap_forward(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The same forward step; its micro-batches are kept until the step is known to be sound, and its losses."""
        return self._seen.watch(step)

    def step_begins(self) -> None:
        """Where a graph holds forward and backward: check before the optimizer's step instead."""
        config = get_model_config(self._model[0])
        if config.cuda_graph_impl == "full_iteration":
            before_step(config.grad_scale_func.__self__, self._check)

    def _check(self) -> bool:
        """Whether the step is to be omitted. Collective; waits for the device once. Also right after a graph's replay."""
        total = sum(map(zero_if_finite, whole_gradients(self._model))) + self._seen.zero_if_finite()
        trouble = (~torch.isfinite(total)).to(torch.int32).reshape(1)
        torch.distributed.all_reduce(trouble, op=torch.distributed.ReduceOp.MAX)
        found = bool(trouble.item())
        sighting = self._sighting() if found else None
        self._seen.step_over()
        if sighting is None:
            self._skipped = 0
            return False
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, sighting)
        self._act([one for one in gathered if one])
        return True

    def _sighting(self) -> Sighting:
        parameters = broken_gradients(self._model)  # before they are computed again
        loss = not bool(torch.isfinite(self._seen.zero_if_finite()))
        found = search(self._model, self._seen, self._args)
        return Sighting(
            rank=torch.distributed.get_rank(),
            host=this_host(),
            outputs=found.outputs if found else [],
            loss=loss or (found is not None and found.loss),
            gradients=found.gradients if found else [],
            parameters=(found and found.parameters) or parameters,
            repeated=None if found is None else found.anything,
        )

    def _act(self, sightings: list[Sighting]) -> None:
        step = int(self._args.curr_iteration) + 1
        name, seen = origin(sightings)
        ranks = ", ".join(f"rank {one.rank} on {one.host}" for one in seen[:4]) or "no rank by itself"
        line = f"step {step}: {name} is not finite ({ranks}{' and others' if len(seen) > 4 else ''})"
        if not any(one.repeated is None or one.repeated for one in sightings):
            line += "; computed again, the same step was finite, as after a fault of the hardware"
        self._skipped += 1
        facts = {"step": step, "origin": name, "ranks": [one.rank for one in seen]}
        if self._policy == "skip" and self._skipped <= self._most:
            self._events.add("step skipped", **facts)
            self._log(f"WARNING: {line}; skipped, {self._skipped} in a row of at most {self._most}")
            return
        self._events.add("not finite", **facts, sightings=[asdict(one) for one in seen[:4]])
        way = "" if self._policy == "stop" else f", as were the {self._most} steps before"
        raise NonFiniteError(f"{line}{way}; the weights are those of step {step - self._skipped}")


_LEFT_OUT = (False, None, None)  # as where the loss scaler found an overflow


def before_step(optimizer: Any, is_left_out: Callable[[], bool]) -> None:
    """Have the next ``step`` of a Megatron optimizer check first, and return "skipped" where it is to be omitted.

    The learning rate's schedule then stays where it is, and the data continues. An attribute of this one object, which may
    have one already (``--optimizer-cuda-graph``).
    """
    step = optimizer.step
    own = vars(optimizer).get("step")

    def checked_first() -> Any:
        if own is None:
            del optimizer.step
        else:
            optimizer.step = own
        return _LEFT_OUT if is_left_out() else step()

    optimizer.step = checked_first


def leave_out(optimizer: Any) -> None:
    """Have the next ``step`` of a Megatron optimizer do nothing and return "skipped"."""
    before_step(optimizer, lambda: True)
