"""Read ``metrics.jsonl``, the record that every run keeps of itself."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from megatron_cod.errors import UserError

TRAIN_LOSS = "lm loss"
VALID_LOSS = "lm loss validation"
TEST_LOSS = "lm loss test"
BITS = "bits per byte"
"""Before the name of the set: ``bits per byte validation``."""
PARAMETERS = "parameters"
VARIANCE_PREFIX = "stream variance/layer "


def variance_tag(layer_number: int) -> str:
    """The metric's name for one global layer, padded so that names sort by depth."""
    return f"{VARIANCE_PREFIX}{layer_number:03d}"


def perplexity(loss: float) -> float:
    """exp(loss); infinity where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """From nats per token."""
    return loss / math.log(2) / bytes_per_token


@dataclass(frozen=True)
class Metrics:
    """Every scalar of a run: name -> {step: value}, steps ascending."""

    scalars: dict[str, dict[int, float]]

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one scalar; empty lists when it was never written."""
        points = self.scalars.get(name, {})
        return list(points), list(points.values())

    def last(self, name: str) -> float | None:
        """The value at the highest step, or None."""
        values = self.series(name)[1]
        return values[-1] if values else None

    def last_step(self) -> int:
        """The last step that was trained; 0 when none was."""
        return max(self.scalars.get(TRAIN_LOSS, {}), default=0)

    def stream_variance(self) -> dict[int, float]:
        """Global layer -> variance of the residual stream after it, at the last measurement."""
        return {
            int(name.removeprefix(VARIANCE_PREFIX)): list(points.values())[-1]
            for name, points in sorted(self.scalars.items())
            if name.startswith(VARIANCE_PREFIX)
        }


def read_metrics(path: str | Path) -> Metrics:
    """Read a metrics file; the last line of a (step, name) wins, since a resumed run writes its steps again.

    A torn last line (the run was killed while writing) is omitted. Raises UserError for a file that is not metrics.
    """
    found: dict[str, dict[int, float]] = {}
    lines = Path(path).read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            found.setdefault(record["name"], {})[int(record["step"])] = float(record["value"])
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise UserError(f"{path}:{number} is not a metrics record: {line[:60]!r}") from None
    return Metrics({name: dict(sorted(points.items())) for name, points in found.items()})
