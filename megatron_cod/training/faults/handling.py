"""What a run has on board against faults, from its arguments; ``run.py`` hangs it into Megatron's loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from megatron_cod.training import checkpoints, retention
from megatron_cod.training.failures import this_rank
from megatron_cod.training.faults import hangs, rewind
from megatron_cod.training.faults.events import Events
from megatron_cod.training.faults.nonfinite import StepGuard
from megatron_cod.training.faults.signals import watched
from megatron_cod.training.faults.spikes import LossSpikes
from megatron_cod.training.faults.time_limit import TimeLimit, deadline
from megatron_cod.training.faults.verdicts import Limits
from megatron_cod.training.launch_store import store_connection

Say = Callable[[str], None]


def check_flags(args: Any) -> None:
    """UserError for fault flags that make no sense. args: the plain parse of the command line."""
    deadline(args.time_limit, 0.0)
    rewind.check_rewind(args)


def hang_limits(args: Any) -> Limits:
    """By default a hang is named well before the collectives' time-out, after which torch ends the job and names nobody."""
    set_up = 60.0 * args.distributed_timeout_minutes
    training = float(args.distributed_timeout_seconds_after_init or set_up)
    timeout = 0.5 * min(set_up, training) if args.hang_timeout is None else args.hang_timeout
    return Limits(timeout, set_up, training)


def put_in_order(args: Any, say: Say, events: Events) -> None:
    """The ``--save`` directory before a run goes on in it. For rank 0 alone, before the process group."""
    checkpoint = rewind.pending(args)
    if checkpoint is not None:
        saved = checkpoints.saved_state(checkpoint).get("args")
        consumed = int(getattr(saved, "consumed_train_samples", 0))
        line = rewind.perform(args, consumed)
        say(str(line))
        events.add("rewind", to=args.rewind_to, skip=args.rewind_skip)

    def damaged(path: Path, why: str) -> None:
        events.add("damaged checkpoint", name=path.name, why=why)

    retention.clean(args.save, say, spare=args.ckpt_step, damaged=damaged, verify=args.verify_checkpoint)


class FaultHandling:
    """One object a rank: hooks for the model, a wrapper for the forward step, a context around the training."""

    def __init__(self, args: Any, events: Events, say: Say) -> None:
        """args: Megatron's, after validation. say: prints a line on rank 0."""
        self._args, self._events, self._say = args, events, say
        policy = "ignore" if args.fp16 else args.on_nonfinite  # fp16's loss scaler has them by design, and skips
        self._guard = StepGuard(policy, args.most_skipped_steps, args, events, say) if policy != "ignore" else None
        end = deadline(args.time_limit, time.time()) if this_rank() == 0 else None
        self._limit = TimeLimit(end, args.save) if end is not None else None
        self._spikes = LossSpikes(args.loss_spike_factor) if args.loss_spike_factor else None
        self._hangs: hangs.HangWatch | None = None
        self._limits = hang_limits(args)

    def attach(self, model: list[torch.nn.Module]) -> list[torch.nn.Module]:
        """Megatron post-wrap hook, when the process group is there and the model is built."""
        if self._guard:
            self._guard.attach(model)
        if self._limits.timeout and torch.distributed.get_world_size() > 1:
            self._hangs = hangs.HangWatch(
                self._limits,
                torch.distributed.get_rank(),
                torch.distributed.get_world_size(),
                store_connection(self._limits.timeout),
                self._events,
                replayed=self._args.cuda_graph_impl == "full_iteration",
            )
            self._hangs.start()
        return model

    def watch(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The same forward step, kept an eye on."""
        return self._guard.watch(step) if self._guard else step

    def step_begins(self) -> None:
        """A training step begins on this rank."""
        if self._limit:
            self._limit.look()
        if self._guard:
            self._guard.step_begins()
        if self._hangs and self._args.cuda_graph_impl == "full_iteration":
            self._hangs.beat()  # no forward step is told where the graph is replayed

    def forward_begins(self) -> None:
        """A forward step begins: of training or validation."""
        if self._hangs:
            self._hangs.beat()

    def see_loss(self, step: int, loss: float) -> str | None:
        """Take a step's training loss, on the rank that has it; a line when it is a spike."""
        spike = self._spikes.see(loss) if self._spikes else None
        if spike is None:
            return None
        usual, threshold = spike
        self._events.add_here("loss spike", step=step, loss=loss, usual=usual, threshold=threshold)
        return (
            f"WARNING: loss spike at step {step}: {loss:.4f}, where {usual:.4f} is usual; should it stay, "
            f"--rewind-to an earlier checkpoint with --rewind-skip passes over this data"
        )

    def _why_stopped(self) -> str:
        return "time limit" if self._limit and self._limit.reached else "SIGTERM"

    @contextmanager
    def around_training(self) -> Iterator[None]:
        """Signals and events; the watch for hangs ends with it."""
        try:
            with watched(self._args, self._events, self._why_stopped):
                yield
        finally:
            if self._hangs:
                self._hangs.stop()
