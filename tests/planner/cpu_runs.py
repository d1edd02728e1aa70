"""Six layouts of two CPU processes: measured step times beside those predicted from the preflight's machine file.

    python -m tests.planner.cpu_runs

The machine must be quiet. Prints the table of docs/planner.md; ``test_cpu_runs.py`` holds the errors to 25%.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from megatron_cod.analysis.metrics import read_metrics
from tests.conftest import ROOT

LAYOUTS = {
    "TP 2": "--tensor-model-parallel-size 2",
    "TP 2, sequence parallel": "--tensor-model-parallel-size 2 --sequence-parallel",
    "PP 2": "--pipeline-model-parallel-size 2",
    "PP 2 x VPP 2": "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2",
    "DP 2": "",
    "DP 2, distributed optimizer": "--use-distributed-optimizer",
}
MODEL = (
    "--recipe debug --mock-data --num-layers 8 --hidden-size 768 --ffn-hidden-size 2048 --num-attention-heads 12 "
    "--seq-length 512 --max-position-embeddings 512 --vocab-size 8000 --padded-vocab-size 8064 --micro-batch-size 1 "
    "--global-batch-size 4 --eval-iters 0 --log-interval 1 --train-iters 7"
)
_TOKENS = 4 * 512  # of a step
_FIRST = 2
"""Steps that are not counted: memory is allocated, connections are opened."""


@dataclass(frozen=True)
class Run:
    """One layout."""

    layout: str
    measured: float
    """Seconds of a step, the median."""
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def _run(*command: str) -> None:
    threads = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env={**os.environ, **threads}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def _two(*command: str) -> None:
    _run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *command)


def measured_runs(folder: Path) -> list[Run]:
    """The machine file is made anew for each layout, just before its run: machines are not equally fast all day."""
    found = []
    for number, (name, flags) in enumerate(LAYOUTS.items()):
        machine, plan, save = folder / f"machine{number}.yaml", folder / f"plan{number}.json", folder / f"run{number}"
        words = [*MODEL.split(), *flags.split()]
        _two("megatron_cod.cli.preflight", "--machine-file", str(machine))
        _two("megatron_cod.training.pretrain", *words, "--save", str(save), "--save-interval", "1000")
        shape = ("--world-size", "2", "--time", "--machine", str(machine), "--json", str(plan))
        _run("-m", "megatron_cod", "rehearse", *words, *shape)
        speeds = read_metrics(save / "metrics.jsonl").series("tokens per second")[1][_FIRST:]
        predicted = json.loads(plan.read_text())["time"]["seconds"]
        found.append(Run(name, _TOKENS / median(speeds), predicted))
    return found


def table(runs: list[Run]) -> str:
    """Markdown."""
    rows = [f"| {run.layout} | {run.measured:.2f} | {run.predicted:.2f} | {run.error:+.0%} |" for run in runs]
    return "\n".join(["| layout | measured, s | predicted, s | error |", "| --- | --- | --- | --- |", *rows])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        print(table(measured_runs(Path(home))))
