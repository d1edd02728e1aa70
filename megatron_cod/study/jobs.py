"""The runs of a study: each one ordinary training run, with a directory and a command line of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_cod.comparison.arms import parse_arm
from megatron_cod.comparison.runs import DIVERGENCE_IS_A_RESULT
from megatron_cod.study.shapes import Shape
from megatron_cod.study.study_file import Study


@dataclass(frozen=True)
class Job:
    """One run."""

    shape: Shape
    arm: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.shape.name}, {self.arm}, lr {self.rate:g}, seed {self.seed}"

    @property
    def folder(self) -> str:
        """Below the study's directory."""
        return f"runs/{self.shape.folder}/{parse_arm(self.arm).folder}/lr_{self.rate:g}/seed_{self.seed}"


def flags_of(study: Study, job: Job, root: Path, prefix: str) -> list[str]:
    """The command line after ``python -m megatron_cod.training.pretrain``.

    root: the study's directory, which holds the recipe. prefix: of the text's datasets.
    """
    steps = study.steps_of(job.shape)
    return [
        *("--recipe", str(root / "recipe.yaml"), *job.shape.flags(), *parse_arm(job.arm).flags),
        *("--lr", f"{job.rate:g}", "--min-lr", f"{job.rate * study.min_rate:g}", "--seed", str(job.seed)),
        *("--init-method-std", f"{study.std_of(job.shape):g}", "--train-iters", str(steps)),
        *("--eval-interval", str(steps), "--eval-iters", "1", "--full-validation"),
        *("--train-data-path", f"{prefix}_train_text_document", "--valid-data-path", f"{prefix}_valid_text_document"),
        *("--save", str(root / job.folder), "--save-interval", str(max(1, -(-steps // 4)))),
        *("--keep-last-checkpoints", "1", *DIVERGENCE_IS_A_RESULT),
    ]
