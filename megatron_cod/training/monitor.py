"""What a run reports: a progress line, TensorBoard, and metrics as JSON lines. Lives on the last rank."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_cod.analysis.metrics import TRAIN_LOSS, VALID_LOSS, perplexity


def format_duration(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below one hour."""
    minutes, secs = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class MetricsWriter:
    """Stands where Megatron expects its TensorBoard writer, and passes everything on to the real one.

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
        tokens_per_step: int,
        log_interval: int,
        emit: Callable[[str], None],
        see_loss: Callable[[int, float], str | None] = lambda step, loss: None,
    ) -> None:
        """inner: a SummaryWriter or None. path: the JSON lines, or None. emit: prints one line. see_loss: takes each
        step's training loss, and answers with a line where there is something to say."""
        self._inner = inner
        self._file = path.open("a", buffering=1) if path else None
        self._train_iters = train_iters
        self._tokens_per_step = tokens_per_step
        self._log_interval = max(1, log_interval)
        self._emit, self._see_loss = emit, see_loss
        self._learning_rate: float | None = None
        # (step, time) of the first and of the latest step; steps and seconds since the last line. The first step is slow
        # (allocation, first communication) and an interval with a validation in it is not a step's: neither counts.
        self._first: tuple[int, float] = (0, 0.0)
        self._last: tuple[int, float] | None = None
        self._steps, self._seconds, self._clean = 0, 0.0, True

    def __bool__(self) -> bool:
        return True

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
        elif name == TRAIN_LOSS:
            self._progress(int(step), number)
            if line := self._see_loss(int(step), number):
                self._emit(line)
        elif name == VALID_LOSS:
            self._clean = False
            self._emit(f"validation at step {step}: loss {number:.4f} | perplexity {perplexity(number):.2f}")

    def _progress(self, step: int, loss: float) -> None:
        now = time.monotonic()
        if self._last is None:
            self._first = self._last = (step, now)
        elif self._clean:
            self._steps += 1
            self._seconds += now - self._last[1]
        self._last, self._clean = (step, now), True
        if not (self._first[0] == step or step % self._log_interval == 0 or step == self._train_iters):
            return
        width = len(str(self._train_iters))
        line = f"step {step:>{width}}/{self._train_iters} | loss {loss:.4f} | ppl {perplexity(loss):.2f}"
        if self._learning_rate is not None:
            line += f" | lr {self._learning_rate:.2e}"
        if self._steps:
            # Tokens/s is the training step alone; the time left counts validation and saving too.
            rate = self._steps / self._seconds * self._tokens_per_step
            elapsed, done = now - self._first[1], step - self._first[0]
            left = elapsed / done * (self._train_iters - step)
            line += f" | {rate:,.0f} tokens/s | ETA {format_duration(left)}"
            self._steps, self._seconds = 0, 0.0
        self._emit(line)


def install_metrics_writer(writer_factory: Callable[[Any], MetricsWriter]) -> None:
    """Put a ``MetricsWriter`` around Megatron's TensorBoard writer, which may be None.

    Megatron keeps its writer in a module global and has no setter for it.
    """
    from megatron.training import global_vars

    global_vars._GLOBAL_TENSORBOARD_WRITER = writer_factory(global_vars._GLOBAL_TENSORBOARD_WRITER)
