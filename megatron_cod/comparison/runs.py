"""Train one arm in a directory of its own: kept when finished, resumed when stopped, reported when it diverges."""

import math
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from megatron_cod.analysis.metrics import TRAIN_LOSS, VALID_LOSS, Metrics, read_metrics
from megatron_cod.checkpoint.directory import TRACKER
from megatron_cod.launch.local_run import RunFailed, run_training

DIVERGENCE_IS_A_RESULT = ("--no-check-for-nan-in-loss-and-grad", "--rerun-mode", "disabled")
"""Flags of a run that is compared: a loss that is not finite ends it and is reported, not inspected."""
RISE = 1.0
"""Nats above its own best (a mean over 20 steps) at which a finished run counts as diverged."""
_NOT_FINITE = re.compile(r"^step +(\d+)/.*\| loss (nan|inf|-inf)\b", re.IGNORECASE)
STOPPED = re.compile(r"step \d+: .* is not finite")
"""The message with which a run ends itself for that (training/faults/nonfinite.py)."""

Show = Callable[[str], None]


class _Diverged(Exception):
    """The loss is not finite any more; its text has the step."""


@dataclass(frozen=True)
class Outcome:
    """What one run measured; diverged: a line with the reason, or None."""

    metrics: Metrics
    diverged: str | None
    seconds: float


def how_it_diverged(metrics: Metrics) -> str | None:
    """A line when a run's losses are not those of a run that trained: not finite, or far above its own best."""
    steps, losses = metrics.series(TRAIN_LOSS)
    for step, loss in zip(steps, losses, strict=True):
        if not math.isfinite(loss):
            return f"loss {loss} at step {step}"
    if len(losses) < 2:
        return None
    span = min(20, len(losses))
    means = [sum(losses[end - span : end]) / span for end in range(span, len(losses) + 1)]
    last = metrics.last(VALID_LOSS)
    end = means[-1] if last is None else max(last, means[-1])
    if not math.isfinite(end):
        return f"validation loss {end}"
    return f"loss rose from {min(means):.2f} to {end:.2f}" if end - min(means) > RISE else None


def run_to_end(launch: Callable[[Show], None], show: Show) -> str | None:
    """Run; how it diverged, in one line, or None. launch: runs, and calls what it is given with progress lines.

    Raises RunFailed when the run fails for another reason than divergence.
    """

    def watch(line: str) -> None:
        show(line)
        found = _NOT_FINITE.match(line)
        if found:
            raise _Diverged(f"loss {found[2].lower()} at step {found[1]}")

    try:
        launch(watch)
    except _Diverged as error:
        return str(error)
    except RunFailed as error:
        found = STOPPED.search(str(error))
        if found is None:
            raise
        return found[0]
    return None


def train(
    name: str, processes: int, flags: list[str], directory: Path, *, fresh: bool, show: Show, on_cpus: bool = False
) -> Outcome:
    """Train an arm, or keep it when the same command finished before. A stopped run resumes from its last checkpoint.

    flags: the command line after ``python -m megatron_cod.training.pretrain``, with ``--save directory``. A directory of
    another command is replaced. on_cpus: hide the GPUs from it. Raises RunFailed when the run fails for another reason than
    divergence.
    """
    record, wanted = directory / "arm.yaml", {"processes": processes, "flags": flags}
    state = yaml.safe_load(record.read_text()) if record.exists() else {}
    same = {key: state.get(key) for key in wanted} == wanted and not fresh
    if same and "seconds" in state:
        show(f"{name}: already trained, kept ({directory}; --fresh trains it again)")
        return _outcome(directory, state)
    resumes = same and (directory / TRACKER).exists()
    if not resumes:
        if directory.exists():
            shutil.rmtree(directory)
        directory.mkdir(parents=True)
        record.write_text(yaml.safe_dump(wanted))
    show(f"{name}: {'resuming' if resumes else 'training'} on {processes} processes, log in {directory / 'log.txt'}")
    started = time.monotonic()
    more = ["--load", str(directory)] if resumes else []

    def launch(watch: Show) -> None:
        run_training(processes, [*flags, *more], directory / "log.txt", watch, on_cpus=on_cpus)

    diverged = run_to_end(launch, lambda line: show(f"  [{name}] {line}"))
    seconds = time.monotonic() - started
    state = {**wanted, "seconds": round(seconds, 1), "diverged": diverged, "resumed": resumes}
    record.write_text(yaml.safe_dump(state))
    show(f"{name}: {f'diverged, {diverged}' if diverged else 'done'} after {seconds:.0f} s")
    return _outcome(directory, state)


def _outcome(directory: Path, state: dict) -> Outcome:
    metrics = read_metrics(directory / "metrics.jsonl")
    return Outcome(metrics, state.get("diverged") or how_it_diverged(metrics), state["seconds"])
