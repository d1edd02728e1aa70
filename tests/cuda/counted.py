"""What one training step launches on the device, phase by phase, and where it makes the host wait.

The run is a process of its own (``python -m tests.cuda.counted OUT ENTRY FLAGS``), since compiled kernels count here and
forked ranks compile anew at every call. One step is counted whole, and the next with two layers fewer: the difference is
what two layers take, without anything of the embedding, the loss or the loop.
"""

import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.ports import free_port

LAUNCHES = ("kernel:", "gemm:", "memset")
FORWARD, BACKWARD, OPTIMIZER = PHASES = ("forward", "backward", "optimizer")
LLAMA_60M = (
    *("--recipe", str(ROOT / "recipes" / "llama_60m.yaml"), "--mock-data", "--tokenizer-type", "NullTokenizer"),
    *("--vocab-size", "31999", "--micro-batch-size", "1", "--global-batch-size", "1", "--lr-warmup-iters", "1"),
    *("--eval-iters", "0", "--log-interval", "1", "--num-workers", "0", "--num-layers", "4"),
    *("--train-iters", "5", "--no-rope-fusion"),
)
"""The paper's 60M blocks, four of them, with one micro-batch a step; bf16 is the recipe's."""
_WHOLE, _SHORT = 3, 4  # the steps that are counted: by then all is compiled and warm


@dataclass
class Step:
    """One step: launches of each phase, and waits of the host up to where the next step begins."""

    launches: dict[str, Counter[str]]
    waits: Counter[str]
    """"file:line function < caller < ...": how often."""


@dataclass
class Counts:
    """A step of four layers, and one of two of them."""

    whole: Step
    short: Step

    def of_a_layer(self, phase: str) -> Counter[str]:
        """What a layer launches, by name."""
        more, fewer = self.whole.launches[phase], self.short.launches[phase]
        assert not fewer - more, fewer - more
        halves = {name: number / 2 for name, number in (more - fewer).items()}
        assert all(number == int(number) for number in halves.values()), halves
        return Counter({name: int(number) for name, number in halves.items()})


class _Counting:
    """Wraps what a training step of Megatron calls, in the process that trains."""

    def __init__(self, emulation: Any) -> None:
        self._emulation = emulation
        self._now, self._inside = 0, False
        self.steps = {step: Step({phase: Counter() for phase in PHASES}, Counter()) for step in (_WHOLE, _SHORT)}

    def install(self) -> None:
        from megatron.core.optimizer import optimizer
        from megatron.core.pipeline_parallel import schedules
        from megatron.training import training

        training.train_step = self._steps(training.train_step)
        schedules.forward_step = self._phase(FORWARD, schedules.forward_step)
        schedules.backward_step = self._phase(BACKWARD, schedules.backward_step)
        for kind in (optimizer.ChainedOptimizer, optimizer.FP32Optimizer, optimizer.MixedPrecisionOptimizer):
            kind.step = self._phase(OPTIMIZER, kind.step)

    def _steps(self, train_step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(forward_step: Any, data: Any, model: list[Any], *rest: Any, **named: Any) -> Any:
            self._take()  # what lay between the two steps is the former one's
            self._now += 1
            if self._now == _SHORT:
                _leave_out_two_layers(model[0])
            return train_step(forward_step, data, model, *rest, **named)

        return counted

    def _take(self) -> Counter[str]:
        """The launches since the last call; the waits are put down for the step at hand."""
        counted = self._emulation.report()
        if self._now in self.steps:
            for name, number in self._emulation.WAITS.items():
                self.steps[self._now].waits[name.split(": ", 1)[1]] += number
        self._emulation.reset()
        return Counter({name: number for name, number in counted.items() if name.startswith(LAUNCHES)})

    def _phase(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._now not in self.steps or self._inside:  # optimizers hold optimizers
                return function(*args, **kwargs)
            self._take()
            self._inside = True
            result = function(*args, **kwargs)
            self._inside = False
            self.steps[self._now].launches[phase] += self._take()
            return result

        return counted


def _leave_out_two_layers(model: Any) -> None:
    from megatron.core.transformer.transformer_block import TransformerBlock

    block = next(module for module in model.modules() if isinstance(module, TransformerBlock))
    block.layers = block.layers[:-2]


def main() -> None:
    import fakecuda  # on the path of processes under the emulation only

    path, mutant, entry, *flags = sys.argv[1:]
    counting = _Counting(fakecuda)
    module = importlib.import_module(f"megatron_cod.training.{entry}")
    if mutant:
        getattr(importlib.import_module("tests.cuda.mutants"), mutant)()
    counting.install()
    sys.argv = [entry, *flags]
    module.main()
    found = {step: {"launches": one.launches, "waits": one.waits} for step, one in counting.steps.items()}
    Path(path).write_text(json.dumps(found))


def count(folder: Path, *flags: str, mutant: str = "", entry: str = "pretrain", timeout: float = 500.0) -> Counts:
    """The counts of a run under these flags. mutant: a function of ``tests.cuda.mutants`` that is called first."""
    path = folder / "counts.json"
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.cuda.counted", str(path), mutant, entry, *flags]
    # Values of large tensors are not computed, and Triton's kernels are compiled and counted.
    environment = os.environ | {"FAKECUDA": "small,report", "FAKECUDA_REPORT": str(folder / "report")}
    environment |= {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "PYTHONPATH": f"{ROOT}:{os.environ['PYTHONPATH']}"}
    environment["FAKECUDA_GRIDS"] = "1"  # " blocks N" behind each kernel's name
    environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port(29600 + os.getpid() % 400))}
    run = subprocess.run(command, cwd=ROOT, env=environment, timeout=timeout, capture_output=True, text=True)
    assert path.exists(), f"exit code {run.returncode}\n{run.stdout[-3000:]}\n{run.stderr[-9000:]}"
    return Counts(*(_step(one) for one in json.loads(path.read_text()).values()))


def _step(read: dict[str, Any]) -> Step:
    return Step({phase: Counter(of) for phase, of in read["launches"].items()}, Counter(read["waits"]))


def table(measured: dict[str, Counts]) -> str:
    """Rows for docs/performance.md: kernels + products + memsets of a layer in each phase."""
    lines = []
    for name, counts in measured.items():
        cells = []
        for phase in (FORWARD, BACKWARD):
            of = counts.of_a_layer(phase)
            parts = [sum(number for what, number in of.items() if what.startswith(kind)) for kind in LAUNCHES]
            cells.append(f"{' + '.join(map(str, parts))} = {of.total()}")
        lines.append(f"| {name} | {' | '.join(cells)} | {counts.whole.launches[OPTIMIZER].total()} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
