"""Writes the progress line, TensorBoard, and metrics as JSON lines, on the last rank."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from megatron_cod.analysis.metrics import BITS, TEST_LOSS, TRAIN_LOSS, VALID_LOSS, bits_per_byte, perplexity
from megatron_cod.common.amounts import format_duration, tokens_text
from megatron_cod.training.monitoring.summary import Summary
from megatron_cod.training.monitoring.throughput import Job, Rate


class MetricsWriter:
    """Replaces Megatron's TensorBoard writer, and passes everything on to the real one.

    Megatron hands its writer each step's reduced values (loss, learning rate, gradient norm, validation loss), so this
    is the one place that sees them all without touching the loop. Each scalar also becomes a line of ``metrics.jsonl``:
    {"step", "name", "value", "time"}; a resumed run appends, and a reader lets the last line of a (step, name) win.
    """

    def __init__(
        self,
        inner: Any,
        path: Path | None,
        *,
        train_iters: int,
        train_samples: int,
        batch_size: int,
        consumed: Callable[[], int],
        job: Job,
        log_interval: int,
        emit: Callable[[str], None],
        status: Callable[[str], None] | None = None,
        see_loss: Callable[[int, float], Iterable[str]] = lambda step, loss: (),
        also: Callable[[dict[str, float], int], None] = lambda values, step: None,
    ) -> None:
        """inner: a SummaryWriter or None. path: the JSON lines, or None. train_iters, train_samples: the whole run's.
        batch_size: samples of a step, until Megatron sets another. consumed: samples trained on so far, by earlier starts
        as well. emit: prints one line. status: shows a step that is not the last, by default as emit does. see_loss:
        takes each step's training loss, and returns lines for the console. also: takes what is written here and Megatron
        does not know, for W&B."""
        self._inner = inner
        self._file = _open_lines(path) if path else None
        self._train_iters, self._train_samples, self._batch_size = train_iters, train_samples, batch_size
        self._job = job
        self._log_interval = max(1, log_interval)
        self._emit, self._status, self._see_loss, self._also = emit, status or emit, see_loss, also
        self._learning_rate: float | None = None
        self._consumed = consumed
        self.summary = Summary(job, consumed)
        self.is_silent = False
        """Whether Megatron is to write nothing: after an evaluation, which is reported from here."""
        # (step, time) of the first step and of the latest, samples since the first; samples, seconds since the last line.
        # The first step is slow (allocation, first communication) and an interval with a validation in it is not a step's:
        # neither counts.
        self._first: tuple[int, float] = (0, 0.0)
        self._since_first = 0
        self._last: tuple[int, float] | None = None
        self._samples, self._seconds, self._clean = 0, 0.0, True

    def __bool__(self) -> bool:
        """Megatron writes nothing where this is false."""
        return not self.is_silent

    def __getattr__(self, name: str) -> Any:
        # add_text and friends: only TensorBoard has a use for them.
        return getattr(self._inner, name) if self._inner is not None else lambda *_, **__: None

    def add_scalar(self, name: str, value: Any, step: int, *rest: Any, **kwargs: Any) -> None:
        """Megatron's call; value is a number or a one-element tensor."""
        number = float(value)
        if self._inner is not None:
            self._inner.add_scalar(name, number, step, *rest, **kwargs)
        if name.endswith("vs samples"):
            return  # the same values over another axis, for TensorBoard only
        if self._file is not None:
            record = {"step": int(step), "name": name, "value": number, "time": round(time.time(), 3)}
            self._file.write(json.dumps(record) + "\n")
        if name == "learning-rate":
            self._learning_rate = number
        elif name == "batch-size":
            self._batch_size = int(number)
        elif name == TRAIN_LOSS:
            self._progress(int(step), number)
            for line in self._see_loss(int(step), number):
                self._emit(line)

    def evaluation(self, name: str, step: int, loss: float, bytes_per_token: float | None = None) -> dict[str, float]:
        """Report an evaluation on the console and in the summary; returns what is to be written as scalars.

        name: validation or test. bytes_per_token: of the text, where it is known.
        """
        self._clean = False
        values = {VALID_LOSS if name == "validation" else TEST_LOSS: loss}
        line = f"{name} at step {step}: loss {loss:.4f} | perplexity {perplexity(loss):.2f}"
        if bytes_per_token:
            values[f"{BITS} {name}"] = bits = bits_per_byte(loss, bytes_per_token)
            line += f" | bits per byte {bits:.4f}"
        self.summary.evaluated(name, step, loss)
        self._emit(line)
        return values

    def add_perplexity(self, name: str, step: int, loss: float, samples: int) -> None:
        """For ``--log-validation-ppl-to-tensorboard``, as Megatron writes it."""
        value = perplexity(min(loss, 20.0))
        self.add_scalar(f"{name} ppl", value, step)
        self.add_scalar(f"{name} ppl vs samples", value, samples)

    def _progress(self, step: int, loss: float) -> None:
        now = time.monotonic()
        seconds = 0.0
        if self._last is None:
            self._first = (step, now)
        else:  # more than one where steps were omitted
            self._since_first += (step - self._last[0]) * self._batch_size
        if self._last is not None and self._clean:
            seconds = now - self._last[1]
            self._samples += self._batch_size
            self._seconds += seconds
        self._last, self._clean = (step, now), True
        self.summary.trained(step, loss, self._batch_size, seconds)
        if not (self._first[0] == step or step % self._log_interval == 0 or step == self._train_iters):
            return
        width = len(str(self._train_iters))
        line = f"step {step:>{width}}/{self._train_iters} | loss {loss:.4f} | ppl {perplexity(loss):.2f}"
        if self._learning_rate is not None:
            line += f" | lr {self._learning_rate:.2e}"
        if self._seconds:
            # Tokens/s is the training step alone; the time left counts validation and saving too.
            rate = Rate(self._job, self._samples, self._seconds)
            consumed = self._consumed()
            left = (now - self._first[1]) / self._since_first * (self._train_samples - consumed)
            seen = consumed * self._job.tokens_per_sample
            line += f" | {rate.text()} | {tokens_text(seen)} tokens seen | ETA {format_duration(left)}"
            values = {**rate.scalars(), "tokens seen": float(seen)}
            for name, value in values.items():
                self.add_scalar(name, value, step)
            self._also(values, step)
            self._samples, self._seconds = 0, 0.0
        (self._emit if step == self._train_iters else self._status)(line)


def _open_lines(path: Path) -> TextIO:
    """To append whole lines: one that a full disk or a kill tore is cut off, or it would take the next with it."""
    file = path.open("a", buffering=1)
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        file.truncate(content.rfind(b"\n") + 1)
    return file


def install_metrics_writer(writer_factory: Callable[[Any], MetricsWriter]) -> None:
    """Put a ``MetricsWriter`` around Megatron's TensorBoard writer, which may be None.

    Megatron keeps its writer in a module global and has no setter for it.
    """
    from megatron.training import global_vars

    global_vars._GLOBAL_TENSORBOARD_WRITER = writer_factory(global_vars._GLOBAL_TENSORBOARD_WRITER)
