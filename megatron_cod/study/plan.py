"""What a study will cost, before anything is trained: runs, parameters, tokens, FLOPs, and time from a timed step."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_cod.analysis.metrics import read_metrics
from megatron_cod.common.amounts import format_duration
from megatron_cod.data.datasets.index_file import read_index
from megatron_cod.study.directory import StudyDirectory
from megatron_cod.study.jobs import Job, flags_of
from megatron_cod.study.runner import Launch
from megatron_cod.study.scheduler import outlook
from megatron_cod.study.shapes import Shape
from megatron_cod.study.study_file import Study

_TIMED = 12
"""Steps of a timed run; the first third is not counted."""


@dataclass(frozen=True)
class Speed:
    """Of a shape on this machine: seconds of a step, of the start of a run, and of the validation at its end."""

    step: float
    start: float
    validation: float

    def run(self, steps: int) -> float:
        """Seconds of a whole run."""
        return self.start + steps * self.step + self.validation


def tokens_of(directory: StudyDirectory, split: str) -> int:
    """Tokens of a part of the text."""
    return read_index(Path(f"{directory.prefix}_{split}_text_document.idx"), "make it again").tokens


def time_shape(directory: StudyDirectory, shape: Shape, launch: Launch) -> Speed:
    """Train a few steps of the first arm, and time them."""
    study = directory.study
    job = Job(shape, study.arms[0], study.grid.rates[0], study.tuning_seeds[0])
    with tempfile.TemporaryDirectory() as folder:
        flags = flags_of(study, job, directory.root, directory.prefix)
        save = flags.index("--save")
        metrics = Path(folder) / "metrics.jsonl"
        short = [*flags[:save], "--train-iters", str(_TIMED), "--eval-iters", "0", "--metrics-file", str(metrics)]
        short += ["--log-interval", "1"]
        began = time.monotonic()
        launch(short, Path(folder) / "log.txt", lambda line: None, 0)
        whole = time.monotonic() - began
        rates = [
            rate for step, rate in read_metrics(metrics).scalars["tokens per second"].items() if step > _TIMED // 3
        ]
    step = study.tokens_per_step * len(rates) / sum(rates)
    forward = step / 3 * tokens_of(directory, "valid") / study.tokens_per_step
    return Speed(step, max(0.0, whole - _TIMED * step), forward)


def plan_lines(directory: StudyDirectory) -> list[str]:
    """The study in words and numbers, without times."""
    study, train = directory.study, tokens_of(directory, "train")
    left = outlook(study, {})
    lines = [f"question: {study.question}", f"rule: {study.rule.sentence()}", f"arms: {', '.join(study.arms)}"]
    rates = ", ".join(f"{rate:g}" for rate in study.grid.rates)
    lines.append(
        f"learning rates: {rates}, and up to {study.grid.extend} more at each side, factor {study.grid.factor:.3g}; tuning "
        f"seeds {_words(study.tuning_seeds)}, final seeds {_words(study.seeds)}"
    )
    lines.append(
        f"text: {study.text}, {train:,} tokens to train on, {tokens_of(directory, 'valid'):,} for validation, all of them "
        "at the end of each run"
    )
    for shape in study.shapes:
        lines.append(_shape_line(study, shape, train))
    growth = 2 * study.grid.extend * len(study.arms) * len(study.shapes) * len(study.tuning_seeds)
    lines.append(f"runs: {left.total}, and up to {growth} more where a grid grows; {_flops(study):.3g} FLOPs")
    return lines


def _words(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _shape_line(study: Study, shape: Shape, train: int) -> str:
    steps = study.steps_of(shape)
    tokens = steps * study.tokens_per_step
    return (
        f"shape {shape.name}: MLP {shape.ffn}, {shape.heads} heads, {shape.non_embedding:,} non-embedding parameters, std "
        f"{study.std_of(shape):g}; a run is {steps:,} steps, {tokens:,} tokens, {tokens / shape.non_embedding:.2f} per "
        f"parameter, {tokens / train:.2f} epochs of the text"
    )


def _flops(study: Study) -> float:
    left = outlook(study, {}).left
    vocabulary, length = int(study.recipe["vocab-size"]), int(study.recipe["seq-length"])
    each = {shape: shape.flops_per_token(vocabulary, length) * study.steps_of(shape) for shape in study.shapes}
    return sum(left[shape] * each[shape] * study.tokens_per_step for shape in study.shapes)


def time_lines(directory: StudyDirectory, jobs: int, launch: Launch, show: Callable[[str], None]) -> None:
    """Time a step of each shape, and show what the study takes on this machine."""
    study, total = directory.study, 0.0
    left = outlook(study, directory.results()).left
    for shape in study.shapes:
        speed = time_shape(directory, shape, launch)
        one = speed.run(study.steps_of(shape))
        total += one * left[shape]
        show(f"time {shape.name}: {speed.step:.3f} s a step, {format_duration(one)} a run; {left[shape]} runs left")
    show(f"time in all, without growth of grids: {format_duration(total / jobs)} with {jobs} at a time")
