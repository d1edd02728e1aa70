"""The summary at the end of a run."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from megatron_cod.analysis.metrics import perplexity
from megatron_cod.checkpoint.directory import iterations
from megatron_cod.checkpoint.events import read_events
from megatron_cod.common.amounts import format_duration, tokens_text
from megatron_cod.training.monitoring.throughput import Job, Rate

# Events of a run that went well all the way; the others are worth a word.
_ORDINARY = {"start", "finished", "end"}


class Summary:
    """Collects the values of the summary on the last rank."""

    def __init__(self, job: Job, consumed: Callable[[], int]) -> None:
        """consumed: samples trained on so far, by earlier starts as well."""
        self._job, self._consumed = job, consumed
        self._begun = time.monotonic()
        self._steps: list[int] = []  # the first and the last of this start
        self._loss = math.nan
        self._validations: dict[int, float] = {}
        self._test: tuple[int, float] | None = None
        self._samples, self._timed, self._seconds = 0, 0, 0.0

    def trained(self, step: int, loss: float, samples: int, seconds: float) -> None:
        """A training step; seconds is 0 where it is not to count for the rate."""
        self._steps = [self._steps[0] if self._steps else step, step]
        self._loss = loss
        self._samples += samples
        if seconds:
            self._timed += samples
            self._seconds += seconds

    def evaluated(self, name: str, step: int, loss: float) -> None:
        """An evaluation after a step, of the validation or the test set."""
        if name == "test":
            self._test = (step, loss)
        else:
            self._validations[step] = loss

    def lines(self, save: str | None) -> list[str]:
        """For the log; nothing where nothing was trained. save: ``--save``."""
        if not self._steps:
            return []
        length = self._job.tokens_per_sample
        took = format_duration(time.monotonic() - self._begun)
        first, last = self._steps
        lines = [f"  trained        steps {first} to {last}, {tokens_text(self._samples * length)} tokens, in {took}"]
        if self._consumed() > self._samples:
            lines[0] += f"; {tokens_text(self._consumed() * length)} tokens with what came before"
        if self._seconds:
            lines.append(f"  speed          {Rate(self._job, self._timed, self._seconds).text()}")
        lines.append(f"  training loss  {self._loss:.4f}")
        if self._validations:
            end = max(self._validations)
            best = min(self._validations, key=lambda step: self._validations[step])
            found = self._validations[end]
            lines.append(f"  validation     {found:.4f} (perplexity {perplexity(found):.2f}) at step {end}")
            if best != end:
                lines[-1] += f", best {self._validations[best]:.4f} at step {best}"
        if self._test is not None:
            step, loss = self._test
            lines.append(f"  test           {loss:.4f} (perplexity {perplexity(loss):.2f}) at step {step}")
        if save:
            there = list(iterations(save).values())
            newest = f", the newest {there[-1].name}" if there else ""
            lines.append(f"  checkpoints    {len(there)} in {save}{newest}")
            lines += _events(Path(save))
        return ["summary:", *lines]


def _events(save: Path) -> list[str]:
    events = read_events(save)
    starts = [number for number, one in enumerate(events) if one.get("event") == "start"]
    counts = Counter(str(one.get("event")) for one in events[starts[-1] if starts else 0 :])
    listed = [f"{count} x {name}" for name, count in counts.items() if name not in _ORDINARY]
    return [f"  events         {', '.join(listed)} (events.jsonl)"] if listed else []
