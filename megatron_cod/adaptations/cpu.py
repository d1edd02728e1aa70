"""What Megatron needs so as to train on a machine without CUDA: ``install()`` does it, and only there.

Megatron's loop names CUDA in many places. Each name adapted here is one row of ``ADAPTED``, with the reason. Where torch
itself is concerned only the dozen factory functions that Megatron calls with ``device='cuda'`` are wrapped (a dictionary
look-up a call); kernels and tensor methods on the hot path are untouched. ``torch.cuda.is_available()`` stays False, or
torch would believe in a GPU.
"""

import functools
import importlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from megatron_cod.adaptations.cross_entropy import of_whole_vocabularies
from megatron_cod.adaptations.table import Adapted, put_in
from megatron_cod.adaptations.torch_optimizer import with_fused_kernel

CPU = torch.device("cpu")

_ENVIRONMENT = {"TORCHDYNAMO_DISABLE": "1"}  # keeps @jit_fuser from compiling with a C++ compiler

DEFAULT_FLAGS = (
    *("--transformer-impl", "local"),
    *("--distributed-backend", "gloo"),
    "--use-cpu-initialization",  # identical weights over TP sizes, and the only initialisation without CUDA
    "--no-persist-layer-norm",
    "--no-gradient-accumulation-fusion",
    "--no-masked-softmax-fusion",
    "--no-rope-fusion",
    "--no-bias-dropout-fusion",  # the fusions are torch.compile'd functions: off, they are the same arithmetic
    "--no-bias-swiglu-fusion",
    "--no-bias-gelu-fusion",
)
"""Megatron flags a CPU run needs; they come before the recipe and the command line, so both can overrule them."""


def has_cuda() -> bool:
    """Whether a GPU is there; then nothing in this file is used."""
    return torch.cuda.is_available()


class _Stream:
    """CPU work is synchronous: a stream that is always done."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_stream(self, _: Any) -> None: ...
    def wait_event(self, _: Any) -> None: ...
    def synchronize(self) -> None: ...
    def record_event(self, event: Any = None) -> Any:
        return event or _Event()


class _Event:
    """An event that has already happened."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def wait(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Any) -> float:
        return 0.0


@contextmanager
def _no_stream(*_: Any, **__: Any) -> Any:
    yield


# From generation 10 on Megatron asks for no CUDA_DEVICE_MAX_CONNECTIONS: TP wants 1 before that, FSDP anything but 1.
_NO_GPU = SimpleNamespace(name="cpu", major=10, minor=0, multi_processor_count=1, total_memory=0)


def _returns(value: Any) -> Callable[..., Any]:
    """A function of its own for each name that is adapted: torch's compiler has one rule a function, and sorts by name."""
    return lambda *_, **__: value


def _same(self: Any, *_: Any, **__: Any) -> Any:
    return self


def _is_cuda(device: Any) -> bool:
    return getattr(device, "type", device if isinstance(device, str) else "").startswith("cuda")


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    """The factory with ``device='cuda'`` read as the CPU, and without pinned memory, which only a GPU's driver has."""

    @functools.wraps(factory)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("pin_memory", None)
        if "device" in kwargs and _is_cuda(kwargs["device"]):
            kwargs["device"] = CPU
        return factory(*args, **kwargs)

    return wrapper


def _cuda_type_name(original: Callable[..., Any]) -> Callable[..., Any]:
    """``Tensor.type()`` as a GPU tensor would answer: optimizers sort parameters by 'torch.cuda.FloatTensor'."""

    @functools.wraps(original)
    def wrapper(self: Any, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None:
            return original(self).replace("torch.", "torch.cuda.", 1)
        return original(self, dtype, *args, **kwargs)

    return wrapper


def _without_cuda(original: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(original, allow_no_cuda=True)


def _as_numbers(original: Callable[..., Any]) -> Callable[..., Any]:
    """Tensors of split sizes become numpy where a GPU's would: torch's all-to-all takes no tensors for them."""
    return lambda tensor, as_numpy=False, **_: tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def _as_one_process(original: Callable[..., Any]) -> Callable[..., Any]:
    """Draws numbers of a layout's sizes; here they come from the generator of the weights, which would depend on it."""

    @functools.wraps(original)
    def wrapper(*_: Any, **__: Any) -> None:
        from megatron.training import get_args

        args = get_args()
        one = {"tensor_model_parallel_size": 1, "context_parallel_size": 1, "sequence_parallel": False}
        held = {name: getattr(args, name) for name in one}
        vars(args).update(one)
        original(tp_size=1)
        vars(args).update(held)

    return wrapper


class _CPUMesh(torch.distributed.device_mesh.DeviceMesh):
    """DeviceMesh that FSDP2 asks for by group and ``"cuda"``."""

    @staticmethod
    def from_group(group: Any, *_: Any, **given: Any) -> Any:
        return torch.distributed.device_mesh.DeviceMesh.from_group(group, "cpu", **given)


def _if_experts(original: Callable[..., None]) -> Callable[..., None]:
    """Counters of routers are set to zero after a step; without routers there are none to look for."""

    @functools.wraps(original)
    def wrapper(config: Any, model: Any) -> None:
        if config.num_moe_experts is not None:
            original(config, model)

    return wrapper


def _get_rng_state(*_: Any, **__: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(new_state: torch.Tensor, *_: Any, **__: Any) -> None:
    torch.set_rng_state(new_state)


def _table() -> tuple[Adapted, ...]:
    cuda, rng = "torch.cuda", "megatron.core.tensor_parallel.random"
    rows = [
        Adapted(cuda, "current_device", lambda: CPU, "Megatron passes it as device= everywhere"),
        Adapted(cuda, "device_count", lambda: 1, "model parallel groups are only made when a device is counted"),
        Adapted(
            cuda, "is_available", lambda: False, "under PYTORCH_NVML_BASED_CUDA_CHECK it is whether any is counted"
        ),
        Adapted(cuda, "set_device", _returns(None), "called with the local rank at start-up"),
        Adapted(cuda, "get_device_properties", lambda *_: _NO_GPU, "flag checks ask for the GPU's generation"),
        Adapted(cuda, "memory_stats", lambda *_: defaultdict(int), "memory report after the first steps"),
        Adapted(cuda, "Stream", _Stream, "communication streams of DDP and P2P"),
        Adapted(cuda, "Event", _Event, "timing and stream order"),
        Adapted(cuda, "current_stream", _Stream, "stream order around collectives"),
        Adapted(cuda, "default_stream", _Stream, "stream order around collectives"),
        Adapted(cuda, "stream", _no_stream, "side streams of the loop"),
        Adapted(cuda, "set_stream", _returns(None), "side streams of the loop"),
        Adapted(cuda, "get_rng_state", _get_rng_state, "RNG state in checkpoints and trackers"),
        Adapted(cuda, "set_rng_state", _set_rng_state, "RNG state in checkpoints and trackers"),
        Adapted(cuda, "manual_seed", lambda seed: torch.manual_seed(seed), "dropout draws from the CPU generator here"),
        Adapted(rng, "_get_cuda_rng_state", _get_rng_state, "the tracker forks the CPU generator instead"),
        Adapted(rng, "_set_cuda_rng_state", _set_rng_state, "the tracker forks the CPU generator instead"),
        Adapted("torch.Tensor", "cuda", _same, "batches and state dicts are moved to the GPU"),
        Adapted("torch.nn.Module", "cuda", _same, "the model is moved to the GPU"),
        Adapted("torch.Tensor", "type", _cuda_type_name, "optimizers sort parameters by its answer", wraps=True),
        Adapted(
            "megatron.training.training",
            "initialize_megatron",
            _without_cuda,
            "asserts a GPU unless allow_no_cuda",
            wraps=True,
        ),
    ]
    rows.append(
        Adapted(
            "megatron.training.models.dist_utils",
            "to_empty_if_meta_device",
            _on_cpu,
            "materialises meta-device parameters with device=torch.device('cuda')",
            wraps=True,
        )
    )
    start = "megatron.training.initialize"
    rows.append(Adapted(start, "_warmup_jit_function", _as_one_process, "weights must not depend on TP", wraps=True))
    experts, fsdp = "megatron.core.transformer.moe.token_dispatcher", "torch_fully_sharded_data_parallel"
    rows.append(Adapted(experts, "maybe_move_tensor_to_cpu", _as_numbers, "looks for tensors on a GPU", wraps=True))
    rows.append(Adapted(f"megatron.core.distributed.{fsdp}", "DeviceMesh", _CPUMesh, "asks for a mesh of GPUs"))
    rows.append(Adapted("torch.optim.AdamW", "step", with_fused_kernel, "twelve operators a parameter", wraps=True))
    rows.append(
        Adapted(
            "megatron.core.tensor_parallel",
            "vocab_parallel_cross_entropy",
            of_whole_vocabularies,
            "passes over all logits five times, and reduces over one rank",
            wraps=True,
        )
    )
    final = "megatron.core.distributed.finalize_model_grads"
    rows.append(Adapted(final, "reset_model_temporary_tensors", _if_experts, "visits every module a step", wraps=True))
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        rows.append(Adapted(cuda, name, _returns(None), "nothing runs ahead of the CPU, and there is no GPU cache"))
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        rows.append(Adapted(cuda, name, _returns(0), "memory report after the first steps"))
    for name in ("FloatTensor", "IntTensor", "LongTensor", "DoubleTensor", "ByteTensor"):
        rows.append(Adapted(cuda, name, getattr(torch, name), "legacy constructors for small flags"))
    for name in (
        *("tensor", "as_tensor", "zeros", "ones", "empty", "full", "arange", "rand", "randn"),
        *("zeros_like", "ones_like", "empty_like", "full_like"),
    ):
        rows.append(Adapted("torch", name, _on_cpu, "called with device='cuda'", wraps=True))
    return tuple(rows)


ADAPTED = _table()


def prepare_environment() -> None:
    """Environment a CPU run needs, where the user has not set it. Call before importing Megatron."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


_installed = False


def install() -> bool:
    """Adapt Megatron to the CPU; returns whether it did. With CUDA present, or a second time, it does nothing.

    Raises RuntimeError, naming them, when Megatron has lost a name that is adapted here.
    """
    global _installed
    if has_cuda() or _installed:
        return False
    prepare_environment()
    # torch looks up what `with torch.device(...)` applies to when one is first entered: it must find the originals.
    with torch.device("cpu"):
        torch.empty(0)
    importlib.import_module("torch._dynamo")  # optimizers import it later: it sorts torch's functions, each once
    put_in(ADAPTED, "megatron_cod/adaptations/cpu.py")
    # The tracker guards against CPU draws inside a GPU context; here both are one generator, so every fork would warn.
    logging.getLogger("megatron.core.tensor_parallel.random").addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )
    _installed = True
    return True
