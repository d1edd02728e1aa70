"""What is watched costs: a step alone, with the guard against NaN, and with the depth monitor looking away or measuring."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from typing import Any

from megatron_cod.benchmark.engine import Engine, random_batches, start_megatron
from megatron_cod.benchmark.report import Report, rows_of
from megatron_cod.benchmark.schemes import QUIET, facts_of
from megatron_cod.benchmark.timing import CLOCKS, Lap, interleave
from megatron_cod.checkpoint.events import Events
from megatron_cod.training.faults.nonfinite import StepGuard
from megatron_cod.training.loop.step_hooks import hook_gradients
from megatron_cod.training.monitoring.depth_monitor import DepthMonitor

INTERVAL = 100
AIM = 0.01


def _at_each_call(step: Callable[..., Any], measure: Callable[[], None]) -> Callable[..., Any]:
    """The step, observed: here each call is one training step."""

    def watched(*rest: Any) -> Any:
        measure()
        return step(*rest)

    return watched


def time_monitor(megatron_flags: Sequence[str], *, rounds: int, warmup: int, threads: int, clock: str) -> Report:
    """Interleaved steps of four equal models. The note has the cost at an interval of 100."""
    args = start_megatron([*QUIET, *megatron_flags], threads)
    args.curr_iteration = 0
    engines = {name: Engine(args, args.norm_scheme) for name in ("without", "guard", "between", "measuring")}
    guard = StepGuard("stop", 0, args, Events(None, 0), print)
    guard.model_built(engines["guard"].model)
    hook_gradients(engines["guard"].model, [guard])
    engines["guard"].forward_step = guard.wrap_forward(engines["guard"].forward_step)
    for name, interval in (("between", 10**9), ("measuring", 1)):
        monitor = DepthMonitor(interval, args, lambda *_: None, lambda _: None)
        monitor.model_built(engines[name].model)
        hook_gradients(engines[name].model, [monitor])
        engines[name].forward_step = _at_each_call(engines[name].forward_step, monitor.step_begins)
    batches = random_batches(args, 4)

    def stepper(engine: Engine) -> partial[Lap]:
        turn = cycle(batches)
        return partial(lambda: engine.step(next(turn), CLOCKS[clock]))

    laps = interleave({name: stepper(engine) for name, engine in engines.items()}, rounds=rounds, warmup=warmup)
    rows = rows_of(laps, "without", args.global_batch_size * args.seq_length)
    between, measuring = (row.ratio.median - 1 for row in rows[2:])
    cost = ((INTERVAL - 1) * between + measuring) / INTERVAL
    alone = measuring / INTERVAL
    note = (
        f"every {INTERVAL} steps: {cost:+.2%} of the step time, of it {alone:+.2%} for the measured step itself "
        f"(aim: under {AIM:.0%})"
    )
    return Report(
        "Cost of the guard and of the depth monitor",
        "without",
        facts_of(args, rounds, threads, clock),
        rows,
        laps,
        [note],
    )
