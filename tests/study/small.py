"""A study of seconds, whose runs are forked from a process that has Megatron imported."""

import json
import os
import threading
import time
from pathlib import Path

from megatron_cod.launch.local_run import RunFailed
from megatron_cod.study.command import Command
from tests.conftest import ROOT
from tests.distributed.launch import run_training_ranks

SMALL = """
question: Does the study tool work?
recipe: {recipe}
arms: [pre_ln+normal, lns]
without-baselines: [pre_ln+scaled]
shapes: {shapes}
learning-rates: [4.0e-3, 1.6e-2]
extend-rates: 0
tuning-seeds: [1]
seeds: {seeds}
steps: 4
text: {text}
rule: {{standard-errors: 2}}
flags: {{seq-length: 64, micro-batch-size: 8, global-batch-size: 8, log-interval: 1, lr-warmup-fraction: 0.25}}
"""


def write_small(folder: Path, text: Path, depths: tuple[int, ...] = (2,), seeds: tuple[int, ...] = (11,)) -> Path:
    """The study file. text: a prefix."""
    file = folder / "small.yaml"
    sizes = {"hidden-size": 16, "ffn-hidden-size": 40, "num-attention-heads": 2}
    shapes = json.dumps([{"num-layers": depth, **sizes} for depth in depths])
    recipe = ROOT / "recipes" / "debug.yaml"
    file.write_text(SMALL.format(recipe=recipe, text=text, shapes=shapes, seeds=list(seeds)))
    return file


class EndWith:
    """In a run, before it starts: it ends when the study's process ends, as the kernel does it for a real one."""

    def __init__(self, parent: int) -> None:
        self.parent = parent

    def __call__(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while Path(f"/proc/{self.parent}").exists():
            time.sleep(0.01)
        os._exit(9)


def launch(flags, log, show, slot):
    """As ``runner.Machine.launch``, forked."""
    (ended,) = run_training_ranks(1, flags, before=EndWith(os.getpid()))
    log.write_text(ended.output)
    lines = ended.output.splitlines()
    for line in lines:
        if line.startswith(("step ", "validation at ")):
            show(line)
    if ended.code:
        raise RunFailed(next((line for line in lines if line.startswith("error: ")), ended.output[-500:]))


def run_study(file: Path, output: Path, jobs: int = 2) -> list[str]:
    """Run a study to its end; the lines it printed."""
    lines: list[str] = []
    Command(file, output, jobs, lines.append, launch).run()
    return lines
