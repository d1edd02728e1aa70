"""A run's length and schedule in tokens, and batch sizes that grow: turned into what Megatron counts, which is samples."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from typing import Any

from megatron_cod.args import MegatronArgs
from megatron_cod.common.numbers import count
from megatron_cod.errors import UserError
from megatron_cod.training.flags.batch_sizes import BatchSizes, batch_sizes, ramp_up

KINDS = ("train", "lr_warmup", "lr_decay", "lr_wsd_decay")
"""Each can be given as KIND_tokens, and in Megatron as KIND_iters or KIND_samples."""
_ALSO = {"train": ("train_epochs",), "lr_warmup": ("lr_warmup_fraction",)}
_BATCH = ("global_batch_size", "step_batch_size_schedule")
_SAME = [_BATCH] + [
    (*(f"{kind}_{unit}" for unit in ("tokens", "iters", "samples")), *_ALSO.get(kind, ())) for kind in KINDS
]
"""Arguments with one meaning."""


def add_token_options(group: Any) -> None:
    """Add them to an argparse group."""
    texts = {
        "train": "train on N tokens, rounded up to whole steps; K, M, B, T: thousands to trillions",
        "lr_warmup": "the learning rate rises over N tokens",
        "lr_decay": "it decays until N tokens (default: the run's end)",
        "lr_wsd_decay": "with --lr-decay-style WSD: it decays over the last N tokens",
    }
    for kind, text in texts.items():
        group.add_argument(f"--{kind.replace('_', '-')}-tokens", type=count, metavar="N", help=text)


def _flag(kind: str, unit: str) -> str:
    return f"--{kind}_{unit}".replace("_", "-")


def overruled(recipe: Collection[str], given: Any) -> set[str]:
    """Keys of a recipe that the command line gives in another unit. given: the command line's own parse."""
    found: set[str] = set()
    for same in _SAME:
        if any(getattr(given, name, None) for name in same):
            found |= {key for key in recipe if key.replace("-", "_") in same}
    return found


def _refuse_two(raw: MegatronArgs) -> None:
    """UserError where the same is given in two units."""
    for same in _SAME[1:]:
        given = [f"--{name}".replace("_", "-") for name in same if getattr(raw, name, None)]
        if len(given) > 1:
            raise UserError(f"{given[0]} and {given[1]} both set the same; give one of them")


def _samples(raw: MegatronArgs, kind: str, sizes: BatchSizes) -> int | None:
    """The requested length in samples; None without one."""
    tokens, steps, samples = (getattr(raw, f"{kind}_{unit}") for unit in ("tokens", "iters", "samples"))
    if steps and not sizes.constant:
        raise UserError(
            f"{_flag(kind, 'iters')} counts steps, and their size grows: give {_flag(kind, 'tokens')} or "
            f"{_flag(kind, 'samples')}"
        )
    if kind == "train":
        if steps:
            return sizes.after(steps)
        if tokens:
            return sizes.until(-(-tokens // raw.seq_length))[1]
        # The data must reach to the end of the last step; of one size, Megatron omits a step that is not whole.
        return samples if sizes.constant or not samples else sizes.until(samples)[1]
    if tokens:
        return max(1, round(tokens / raw.seq_length))
    return steps * sizes.last if steps else samples or None


def in_samples(raw: MegatronArgs, parser: argparse.ArgumentParser, log: Callable[[str], None]) -> None:
    """Set lengths in samples where one is given in tokens, or where batch sizes grow; else leave all as it is.

    raw: the plain parse, changed in place. parser: has the defaults. UserError for lengths that contradict each other or
    cannot be turned into samples.
    """
    grows = raw.rampup_batch_size or raw.step_batch_size_schedule
    if not (grows or raw.phase_transition_iterations or any(getattr(raw, f"{kind}_tokens") for kind in KINDS)):
        return
    _refuse_two(raw)
    if not raw.seq_length:
        raise UserError("--seq-length is missing: how many tokens a sample has")
    if raw.phase_transition_iterations and (grows or raw.train_tokens):
        raise UserError(
            "--phase-transition-iterations goes with one batch size and --train-samples or --train-iters: the phases' "
            "samples may differ in length"
        )
    if raw.rampup_batch_size:
        _ramp_to_schedule(raw, raw.rampup_batch_size)
    elif raw.step_batch_size_schedule and raw.global_batch_size:
        raise UserError(
            "--step-batch-size-schedule and --global-batch-size both set how large a batch is; give one of them"
        )
    sizes = batch_sizes(raw)
    if not sizes.constant and raw.eval_global_batch_size is None:
        raw.eval_global_batch_size = sizes.last  # Megatron's would be the smallest there can be
    for kind in KINDS:
        samples = _samples(raw, kind, sizes)
        by_steps, by_samples = f"{kind}_iters", f"{kind}_samples"
        setattr(raw, by_steps, parser.get_default(by_steps))
        setattr(raw, by_samples, samples or parser.get_default(by_samples))
        if kind == "train" and samples:
            tokens = samples * raw.seq_length
            log(f"{sizes.until(samples)[0]:,} steps, {samples:,} samples, {tokens:,} tokens")


def _ramp_to_schedule(raw: MegatronArgs, ramp: list[int]) -> None:
    if raw.step_batch_size_schedule:
        raise UserError(
            "--rampup-batch-size and --step-batch-size-schedule both set how batches grow; give one of them"
        )
    if not raw.global_batch_size:
        raise UserError("--rampup-batch-size needs --global-batch-size, the size that it ends at")
    raw.step_batch_size_schedule = ramp_up(ramp, raw.global_batch_size, raw.seq_length)
    raw.rampup_batch_size = raw.global_batch_size = None  # type: ignore[assignment]  # as without the flags
