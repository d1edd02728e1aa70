"""Step times of norm schemes on one or several backends, one model each in one process."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import torch

from megatron_cod.adaptations import cpu
from megatron_cod.args import MegatronArgs
from megatron_cod.backends.choice import have_apex, have_transformer_engine
from megatron_cod.benchmark import activation_scaling
from megatron_cod.benchmark.engine import Engine, Microbatch, random_batches, start_megatron
from megatron_cod.benchmark.flops import mfu
from megatron_cod.benchmark.memory import PeakMemory
from megatron_cod.benchmark.operators import count_operators, table
from megatron_cod.benchmark.report import Report, Row, rows_of
from megatron_cod.benchmark.timing import CLOCKS, Lap, Laps, interleave, ratio
from megatron_cod.comparison.arms import parse_arm
from megatron_cod.errors import UserError
from megatron_cod.training.flags.imports import import_schemes
from megatron_cod.training.monitoring.throughput import peak_tflops

REFERENCE = "pre_ln"
AIM = 1.005
"""The step-time ratio of LNS to Pre-LN that is aimed at."""
QUIET = ("--mock-data", "--eval-iters", "0", "--logging-level", "40")


def skipped(backends: Sequence[str], normalization: str) -> dict[str, str]:
    """Backend -> why it cannot run here, for those that cannot."""
    reasons = {}
    if "transformer_engine" in backends and not have_transformer_engine():
        reasons["transformer_engine"] = "Transformer Engine is not installed"
    if "apex" in backends and not have_apex():
        reasons["apex"] = "NVIDIA Apex is not installed"
    elif "apex" in backends and normalization != "LayerNorm":
        reasons["apex"] = f"Apex has no {normalization}"
    return reasons


def arm_name(scheme: str, backend: str | None) -> str:
    """What an arm is called in tables."""
    return scheme if backend is None else f"{scheme} @ {backend}"


class _Arms:
    """Every scheme on every backend, each with its model and its memory."""

    def __init__(self, args: MegatronArgs, schemes: Sequence[str], backends: Sequence[str | None]) -> None:
        self.engines: dict[str, Engine] = {}
        self.memory: dict[str, PeakMemory] = {}
        self.notes: list[str] = []
        for backend in backends:
            for scheme in schemes:
                name = arm_name(scheme, backend)
                fused = "transformer_engine" in (backend, None if backend else args.transformer_impl)
                if scheme == activation_scaling.NAME and fused:
                    self.notes.append(f"{name}: skipped, the norm whose output it scales is fused there")
                else:
                    memory = self.memory[name] = PeakMemory()
                    self.engines[name] = memory.building(partial(Engine, args, scheme, backend))

    def stepper(self, name: str, batches: list[list[Microbatch]], clock: str) -> partial[Lap]:
        """One step of an arm; each has its own turn through the same batches."""
        turn, engine, memory = cycle(batches), self.engines[name], self.memory[name]
        return partial(lambda: memory.stepping(lambda: engine.step(next(turn), CLOCKS[clock])))


def compare_schemes(
    schemes: Sequence[str],
    megatron_flags: Sequence[str],
    *,
    rounds: int,
    warmup: int,
    threads: int,
    clock: str,
    backends: Sequence[str] = (),
    peak: float | None = None,
    profile: bool = False,
    nvtx: bool = False,
) -> Report:
    """Time Megatron's train_step under each scheme and backend; pre_ln is always among the schemes.

    schemes: arms of ``comparison.arms``. megatron_flags: ``--recipe FILE`` and any flag of pretrain. backends: none means
    the automatic one. peak: TFLOP/s of the device, for MFU. profile: count operators too. Raises UserError for an unknown
    arm, for what Megatron refuses, and where no backend is left.
    """
    import_schemes(megatron_flags)
    with activation_scaling.registered():
        for name in schemes:
            parse_arm(name)
    names = [REFERENCE, *(name for name in dict.fromkeys(schemes) if name != REFERENCE)]
    args = start_megatron([*QUIET, *megatron_flags], threads)
    reasons = skipped(backends, args.normalization)
    chosen: list[str | None] = [name for name in dict.fromkeys(backends) if name not in reasons]
    if backends and not chosen:
        raise UserError("; ".join(f"{name}: {why}" for name, why in reasons.items()))
    if len(chosen) > 1:
        args.gradient_accumulation_fusion = False  # not every backend has it, and arms must differ in one thing
    arms = _Arms(args, names, chosen or [None])
    batches = random_batches(args, 4)
    if nvtx and torch.cuda.is_available():
        for engine in arms.engines.values():
            engine.mark_layers()
    steps = {name: arms.stepper(name, batches, clock) for name in arms.engines}
    laps: Laps = interleave(steps, rounds=rounds, warmup=warmup)
    reference = arm_name(REFERENCE, (chosen or [None])[0])
    notes = [
        *(f"{name}: skipped, {why}" for name, why in reasons.items()),
        *arms.notes,
        *_ratios(laps, chosen or [None]),
    ]
    rows = _rows(args, arms, laps, reference, peak_tflops(peak))
    appendix = _operators(arms, batches[0][0], reference, args) if profile else ""
    return Report(
        "Step time of norm schemes", reference, facts_of(args, rounds, threads, clock), rows, laps, notes, appendix
    )


def _rows(args: MegatronArgs, arms: _Arms, laps: Laps, reference: str, peak: float | None) -> list[Row]:
    rows = []
    for row in rows_of(laps, reference, args.global_batch_size * args.seq_length):
        model = arms.engines[row.name].model[0]
        share = mfu(args, model, row.tokens_per_s, peak) if peak else None
        rows.append(replace(row, mfu=share, peak_bytes=arms.memory[row.name].total))
    return rows


def _ratios(laps: Laps, backends: Sequence[str | None]) -> list[str]:
    """A line a backend: LNS against Pre-LN of the same backend."""
    lines = []
    for backend in backends:
        ours, stock = arm_name("lns", backend), arm_name(REFERENCE, backend)
        if ours in laps:
            found = ratio([lap.total for lap in laps[ours]], [lap.total for lap in laps[stock]])
            interval = f"{found.low:.4f} .. {found.high:.4f}"
            lines.append(f"{ours} / {stock}: step ratio {found.median:.4f} ({interval}), aim {AIM} at most")
    return lines


def _operators(arms: _Arms, batch: Microbatch, reference: str, args: MegatronArgs) -> str:
    """Operators of one forward and backward of each arm."""
    counts = {
        name: count_operators(partial(engine.forward_backward, batch), args.hidden_size)
        for name, engine in arms.engines.items()
    }
    return table(counts, reference, args.num_layers)


def facts_of(args: MegatronArgs, rounds: int, threads: int, clock: str) -> dict[str, Any]:
    return {
        "layers": args.num_layers,
        "hidden": args.hidden_size,
        "ffn": args.ffn_hidden_size,
        "seq": args.seq_length,
        "global batch": args.global_batch_size,
        "micro batch": args.micro_batch_size,
        "dtype": str(args.params_dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if cpu.has_cuda() else "CPU",
        "threads": threads,
        "rounds": rounds,
        "clock": clock,
    }
