"""Shapes whose estimated memory is compared with the allocator's peak on an emulated device, and the measuring.

    python -m tests.gpu_emulation python -m tests.cuda.memory [--write] [SHAPE ...]

measures the shapes in turn (all of them by default) and prints the table; ``--write`` puts it into docs/rehearsal.md.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from megatron_cod.estimate import activations, memory
from megatron_cod.estimate.memory import Memory, rank_memory
from megatron_cod.rehearsal.launch import read_launch
from megatron_cod.rehearsal.worker import Job, rehearse
from tests.conftest import ROOT
from tests.distributed.launch import run_ranks

GIB = 1 << 30
PAGE = ROOT / "docs" / "rehearsal.md"
BEGIN, END = "<!-- memory: written by tests/cuda/memory.py -->", "<!-- memory: end -->"


def _recipe(size: str, *flags: str) -> tuple[str, ...]:
    return ("--recipe", str(ROOT / "recipes" / f"llama_{size}.yaml"), "--mock-data", *flags)


def _layout(tp: int = 1, pp: int = 1, vpp: int = 1) -> tuple[str, ...]:
    flags = ("--tensor-model-parallel-size", str(tp), "--pipeline-model-parallel-size", str(pp))
    flags += ("--sequence-parallel",) if tp > 1 else ()
    return flags + (("--num-virtual-stages-per-pipeline-rank", str(vpp)) if vpp > 1 else ())


def _batch(micro: int, count: int = 2, replicas: int = 1) -> tuple[str, ...]:
    return ("--micro-batch-size", str(micro), "--global-batch-size", str(micro * count * replicas))


@dataclass(frozen=True)
class Shape:
    """A launch, and the rank of it that is measured."""

    flags: tuple[str, ...]
    world: int = 1
    rank: int = 0


_TP8 = _recipe("7b", *_layout(8), *_batch(1))
_VPP = _recipe("7b", *_layout(4, 4, 2), *_batch(1, 8))
_FULL = ("--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1")
_SELECTIVE = ("--recompute-granularity", "selective", "--recompute-modules", "core_attn", "mlp")
_EXPERTS = (
    *("--num-experts", "8", "--moe-router-topk", "2", "--moe-router-load-balancing-type", "aux_loss"),
    *("--moe-aux-loss-coeff", "0.01", "--moe-token-dispatcher-type", "alltoall"),
    *("--moe-expert-capacity-factor", "1.0"),
)
_FEW = ("--num-layers", "8")
_LONG = ("--seq-length", "4096", "--max-position-embeddings", "4096")
_PADDED = ("--moe-pad-expert-input-to-capacity",)

SHAPES = {
    "60M": Shape(_recipe("60m", *_batch(32))),
    "1B": Shape(_recipe("1b", *_batch(16))),
    "1B, DP 8": Shape(_recipe("1b", *_batch(16, replicas=8)), 8, 3),
    "7B, TP 8": Shape(_TP8, 8),
    "7B, TP 8, DP 8": Shape(_recipe("7b", *_layout(8), *_batch(1, replicas=8)), 64, 9),
    "7B, TP 8, core_attn and mlp recomputed": Shape((*_TP8, *_SELECTIVE), 8),
    "7B, TP 8, fully recomputed": Shape((*_TP8, *_FULL), 8),
    "7B, TP 4, PP 4, VPP 2, first stage": Shape(_VPP, 16),
    "7B, TP 4, PP 4, VPP 2, last stage": Shape(_VPP, 16, 12),
    "350M, one layer of MTP": Shape(_recipe("350m", *_FEW, *_batch(16), "--mtp-num-layers", "1")),
    "350M, 8 experts, top 2, capacity 1": Shape(_recipe("350m", "--num-layers", "4", *_batch(8), *_EXPERTS, *_PADDED)),
    "350M, fp32": Shape(_recipe("350m", *_FEW, *_batch(16), "--unset", "bf16")),
    "350M, tied embeddings": Shape(
        _recipe("350m", *_FEW, *_batch(16), "--unset", "untie-embeddings-and-output-weights")
    ),
    "350M, grouped queries, GELU, LayerNorm": Shape(
        _recipe(
            *("350m", *_FEW, *_batch(16), "--unset", "swiglu", "--normalization", "LayerNorm"),
            *("--group-query-attention", "--num-query-groups", "4"),
        )
    ),
    "350M, CP 2": Shape(_recipe("350m", *_FEW, *_batch(4), *_LONG, "--context-parallel-size", "2"), 2),
    "7B, TP 2, PP 4, first stage, long rows": Shape(_recipe("7b", *_layout(2, 4), *_batch(1, 8), *_LONG), 8),
}
"""Widths and vocabularies are those of the recipes, and depths but for 350M (8 layers; 4 with experts); few micro-batches
a step, as many as can be in flight. On the CPU's side an operation takes the same time whatever its size."""


def none(*_: Any) -> float:
    return 0.0


def outputs_of_experts_too(args: Any, parts: Any = activations._moe_parts) -> dict[str, float]:
    found = parts(args)
    return found | {"moe": found["moe"] + activations.routed_rows(args) * args.hidden_size * 2}


TERMS = {
    "product in flight": (activations, "product_backward", none),
    "gathered input": (memory, "gathered_input", none),
    "rotary tables": (memory, "shared_rotary", none),
    "optimizer's step": (memory, "step_bytes", none),
    "outputs of experts": (activations, "_moe_parts", outputs_of_experts_too),
}
"""What the estimate did not have at first, and what it had too much: module, function, and what it would be without."""


@contextmanager
def without(*terms: str) -> Iterator[None]:
    """The estimate without these terms."""
    with ExitStack() as patches:
        for module, name, instead in map(TERMS.__getitem__, terms):
            patches.enter_context(mock.patch.object(module, name, instead))
        yield


def estimate(name: str) -> Memory:
    """Of the measured rank, now."""
    shape = SHAPES[name]
    return rank_memory(read_launch(shape.flags, shape.world).args, shape.rank)


@dataclass(frozen=True)
class Measured:
    """Bytes of the allocator in the second step of one rank, and what was estimated."""

    static: int
    """Before the step."""
    passes: int
    """Peak until gradients are finished."""
    step: int
    """Peak after that: the optimizer's step."""
    reserved: int
    seconds: float

    @property
    def peak(self) -> int:
        return max(self.passes, self.step)

    @property
    def activations(self) -> int:
        return self.passes - self.static

    def off(self, estimated: Memory) -> tuple[float, float]:
        """The estimated peak and activations over the measured ones, less 1."""
        return estimated.total / self.peak - 1, estimated.activations / self.activations - 1


def measure_rank(_rank: int, shape: Shape, before: Callable[[], None] | None = None) -> Measured:
    """Two steps of the shape's rank over a fake process group, in this process, which is used up by it."""
    os.environ |= {"FAKECUDA_LIGHT": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    import fakecuda  # on the path of processes under the emulation only

    fakecuda.begin_rank("small")
    import torch
    from megatron.training import training

    if before is not None:
        before()
    launch = read_launch(shape.flags, shape.world)
    found: dict[str, int] = {}
    train_step, finalize, steps = training.train_step, training.finalize_model_grads, 0

    def second_step(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps != 2:
            return train_step(*args, **kwargs)
        found["static"] = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = train_step(*args, **kwargs)
        found["step"], found["reserved"] = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return result

    def finalized(*args: Any, **kwargs: Any) -> Any:
        if steps == 2:
            found["passes"] = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        return finalize(*args, **kwargs)

    started = time.monotonic()
    job = Job(launch.command_line, shape.rank, shape.world, 2, mock_data=True, vocabulary=launch.args.padded_vocab_size)
    with (
        mock.patch.object(training, "train_step", second_step),
        mock.patch.object(training, "finalize_model_grads", finalized),
    ):
        rehearse(job)
    return Measured(**found, seconds=time.monotonic() - started)


def measure(name: str, before: Callable[[], None] | None = None) -> Measured:
    return run_ranks(1, measure_rank, SHAPES[name], before, timeout=400.0)[0]


def row(name: str, found: Measured) -> str:
    """A line of the table."""
    now = estimate(name)
    with without(*TERMS):
        before = found.off(estimate(name))
    sizes = (now.total, found.peak, now.activations, found.activations)
    peak, measured_peak, kept, measured_kept = (f"{size / GIB:.2f}" for size in sizes)
    off, before_off = (tuple(f"{part:+.1%}" for part in parts) for parts in (found.off(now), before))
    reserved = f"{found.reserved / found.peak - 1:+.0%}"
    cells = (name, peak, measured_peak, off[0], before_off[0], kept, measured_kept, off[1], before_off[1], reserved)
    return f"| {' | '.join(cells)} |"


HEADING = (
    "| shape | peak, estimated | measured | off | without the new terms | activations, estimated | measured | off "
    "| without the new terms | reserved over allocated |\n|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    names = [word for word in sys.argv[1:] if word != "--write"] or list(SHAPES)
    lines = [HEADING]
    print(HEADING, flush=True)
    for name in names:
        try:
            found = measure(name)
        except AssertionError as error:
            print(f"{name}: {str(error)[-700:]}", flush=True)
            continue
        lines.append(row(name, found))
        print(lines[-1], f"{found.seconds:.0f} s", flush=True)
    if "--write" in sys.argv:
        text = PAGE.read_text()
        head, rest = text.split(BEGIN)
        PAGE.write_text("\n".join([head + BEGIN, *lines, END]) + rest.split(END)[1])


if __name__ == "__main__":
    main()
