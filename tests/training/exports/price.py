"""What an export beside a training costs a step: ``python -m tests.training.exports.price [RANKS] [idle|normal]``.

One run trains, and a process of the same settings as an export exports its first checkpoint again and again. Every
``BLOCK`` steps that process is stopped or continued, so that both kinds of steps meet the same load of the machine. Both
the elapsed time of a step and the processor time of rank 0 are compared. ``normal``: at the priority of the training, to
see what caches and memory cost where the export does run, on a machine that has no time for idle priority.
"""

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import megatron_cod.training.before_megatron  # noqa: F401 - the environment of the ranks
from tests.distributed.launch import run_training_ranks

BLOCK, PAIRS = 3, 150
WARM_UP = 40
MODEL = [
    *("--recipe", "recipes/debug.yaml", "--mock-data", "--eval-iters", "0", "--log-interval", "1000"),
    *("--num-layers", "4", "--hidden-size", "256", "--ffn-hidden-size", "688", "--num-attention-heads", "8"),
    *("--seq-length", "128", "--max-position-embeddings", "128", "--micro-batch-size", "1", "--global-batch-size", "4"),
]
_AGAIN = """
import shutil, sys
from pathlib import Path
from megatron_cod.training.exports import process
process.settle()
if sys.argv[3] == "idle":
    process.lower_priority()
from megatron_cod.training import before_megatron
import torch
from megatron_cod.huggingface.export import ExportJob, export_model
torch.set_num_threads(1)
count = 0
while True:
    export_model(ExportJob(Path(sys.argv[1]), Path(sys.argv[2]), verify=False))
    shutil.rmtree(sys.argv[2])
    count += 1
    Path(sys.argv[2] + ".count").write_text(str(count))
"""


def _times() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


@dataclass
class Alternates:
    """Put into a rank: rank 0 stops and continues the exports, and writes how long each block of steps took."""

    result: str
    priority: str

    def __call__(self) -> None:
        from megatron_cod.training.exports import observer

        self._steps, self._blocks, self._begun = 0, [], (0.0, 0.0)
        self._process: subprocess.Popen[bytes] | None = None
        observer.Exports.step_begins = lambda this: self._step(this)
        observer.SECONDS_AT_THE_END = 0.0

    def _step(self, this: Any) -> None:
        self._steps += 1
        if self._steps == 3:
            self._start(this)
        at = self._steps - WARM_UP
        if at < 0 or at % BLOCK or at > 2 * PAIRS * BLOCK:
            return
        now, block = _times(), at // BLOCK
        if block:
            self._blocks.append([one - other for one, other in zip(now, self._begun, strict=True)])
        runs = block % 4 in (0, 3)  # with, without, without, with
        assert self._process is not None and self._process.poll() is None
        self._process.send_signal(signal.SIGCONT if runs else signal.SIGSTOP)
        self._begun = _times()
        if block == 2 * PAIRS:
            self._process.kill()
            Path(self.result).write_text(json.dumps([self._start_ms, *self._blocks]))

    def _start(self, this: Any) -> None:
        from megatron_cod.checkpoint.directory import iteration_name

        begun = time.perf_counter()
        command = [
            sys.executable,
            "-c",
            _AGAIN,
            str(this._save / iteration_name(2)),
            str(this._save / "again"),
            self.priority,
        ]
        self._process = subprocess.Popen(command, start_new_session=True)
        self._start_ms = 1000 * (time.perf_counter() - begun)


def main(ranks: int, priority: str) -> None:
    steps = WARM_UP + 2 * PAIRS * BLOCK + 10
    with tempfile.TemporaryDirectory() as folder:
        result, save = f"{folder}/blocks.json", f"{folder}/save"
        flags = [*MODEL, "--train-iters", str(steps), "--lr-decay-iters", str(steps), "--norm-scheme", "lns"]
        flags += ["--save", save, "--load", save, "--save-interval", "100000", "--hf-export-interval", "100000"]
        flags += ["--pipeline-model-parallel-size", str(ranks)]
        run_training_ranks(ranks, [*flags, "--exit-interval", "2"])
        ended = run_training_ranks(ranks, flags, timeout=3000, before=Alternates(result, priority))
        assert ended[0].code == 0, ended[0].output[-3000:]
        start_ms, *blocks = json.loads(Path(result).read_text())
        count = Path(save, "again.count")
        exports = count.read_text() if count.is_file() else 0
    print(f"{ranks} ranks, priority {priority}: starting the process took {start_ms:.1f} ms; {exports} exports")
    for name, place in (("a step", 0), ("processor time of a step", 1)):
        _report(name, [block[place] for block in blocks])


def _report(name: str, times: list[float]) -> None:
    quads = [times[start : start + 4] for start in range(0, len(times) - 3, 4)]
    ratios = sorted((one[0] + one[3]) / (one[1] + one[2]) for one in quads)
    without = statistics.median(time for one in quads for time in one[1:3]) / BLOCK
    half, apart = len(ratios) / 2, len(ratios) ** 0.5  # 95%: the median of so many lies between these two
    low, high = ratios[int(half - apart)], ratios[min(int(half + apart), len(ratios) - 1)]
    print(
        f"{name}: {1000 * without:.1f} ms, {statistics.median(ratios):.4f} times as much beside an export "
        f"(95%: {low:.4f} to {high:.4f}; {len(ratios)} groups of {4 * BLOCK} steps)"
    )


if __name__ == "__main__":
    words = [*sys.argv[1:], *("1", "idle")[len(sys.argv) - 1 :]]
    main(int(words[0]), words[1])
