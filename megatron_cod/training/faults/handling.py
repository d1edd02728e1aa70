"""Fault handling before a run begins, and the hang watch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from megatron_cod.args import MegatronArgs
from megatron_cod.checkpoint import retention
from megatron_cod.checkpoint.events import Events
from megatron_cod.checkpoint.rewinds import pending
from megatron_cod.checkpoint.selection import saved_state
from megatron_cod.launch.store import store_connection
from megatron_cod.training.faults import hangs, rewind
from megatron_cod.training.faults.hang_diagnosis import Limits
from megatron_cod.training.faults.time_limit import deadline
from megatron_cod.training.loop.observers import Observer, Run

Log = Callable[[str], None]


def check_flags(args: MegatronArgs) -> None:
    """UserError for fault flags that make no sense. args: the plain parse of the command line."""
    deadline(args.time_limit, 0.0)
    rewind.check_rewind(args)


def hang_limits(args: MegatronArgs) -> Limits:
    """By default a hang is named well before the collectives' time-out, after which torch ends the job and names nobody."""
    set_up = 60.0 * args.distributed_timeout_minutes
    training = float(args.distributed_timeout_seconds_after_init or set_up)
    timeout = 0.5 * min(set_up, training) if args.hang_timeout is None else args.hang_timeout
    return Limits(timeout, set_up, training)


def put_in_order(args: MegatronArgs, log: Log, events: Events) -> None:
    """Clean up ``--save`` before a run resumes in it. On rank 0 only, before the process group."""
    checkpoint = pending(args)
    if checkpoint is not None:
        saved = saved_state(checkpoint).get("args")
        consumed = int(getattr(saved, "consumed_train_samples", 0))
        line = rewind.perform(args, consumed)
        log(str(line))
        events.add("rewind", to=args.rewind_to, skip=args.rewind_skip)

    def damaged(path: Path, why: str) -> None:
        events.add("damaged checkpoint", name=path.name, why=why)

    assert args.save is not None
    retention.clean(args.save, log, spare=args.ckpt_step, damaged=damaged, verify=args.verify_checkpoint)


class Hangs(Observer):
    """The watch for hangs, from when the model is built to the end of the training."""

    def __init__(self, args: MegatronArgs, events: Events, limits: Limits) -> None:
        self._args, self._events, self._limits = args, events, limits
        self._watch: hangs.HangWatch | None = None
        self._replayed = args.cuda_graph_impl == "full_iteration"

    @classmethod
    def of(cls, run: Run) -> Hangs | None:
        """Where there are other ranks to wait for, and ``--hang-timeout`` is not 0."""
        limits = hang_limits(run.args)
        return cls(run.args, run.events, limits) if limits.timeout and run.args.world_size > 1 else None

    @contextmanager
    def around_training(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self._watch:
                self._watch.stop()

    def model_built(self, model: list[torch.nn.Module]) -> None:
        """The process group is there: begin."""
        self._watch = hangs.HangWatch(
            self._limits,
            torch.distributed.get_rank(),
            torch.distributed.get_world_size(),
            store_connection(self._limits.timeout),
            self._events,
            replayed=self._replayed,
        )
        self._watch.start()

    def step_begins(self) -> None:
        """A heartbeat for replayed graphs, where ``forward_begins`` is not called."""
        if self._replayed:
            self.forward_begins()

    def forward_begins(self) -> None:
        """A heartbeat."""
        if self._watch:
            self._watch.heartbeat()
