"""The devices of this machine, before any rank waits for another: what torch can use, and for how many processes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megatron_cod.adaptations import cpu
from megatron_cod.args import MegatronArgs
from megatron_cod.errors import UserError

_HIDDEN = "CUDA_VISIBLE_DEVICES"
_CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
_ON_CPUS = f"{_HIDDEN}= (empty) trains on CPU processes"
_NO_DEVICE = ("Found no NVIDIA driver", "No CUDA GPUs are available", "no CUDA-capable device")
_FORKED = "in forked subprocess"
"""In a process that was forked after its parent started CUDA, the number of devices is unknown."""
_BLACKWELL = 10
"""The first generation whose order of launches does not depend on the number of connections."""


def no_gpu() -> str:
    """Why there is none, for the log line that names the backend; see ``check_driver`` for a GPU that fails."""
    if os.environ.get(_HIDDEN) is not None:
        return f"no GPU found, with {_HIDDEN}={os.environ[_HIDDEN]}"
    return "no GPU found" if torch.version.cuda else f"no GPU found: torch {torch.__version__} is built without CUDA"


def check_driver() -> None:
    """UserError where torch finds no GPU because it cannot use the driver, or the devices fail; without any, nothing.

    Nothing of CUDA is started where there is a GPU, so that the process may still fork.
    """
    if not cpu.has_cuda() and not _are_hidden() and torch.version.cuda:
        _start_cuda()


def _are_hidden() -> bool:
    """Whether the user hides all GPUs: CUDA omits -1 and all after it."""
    visible = os.environ.get(_HIDDEN)
    return visible is not None and visible.split(",")[0].strip() in ("", "-1")


def _start_cuda() -> None:
    try:
        with warnings.catch_warnings(action="ignore"):  # of generations that it has no kernels for
            torch.cuda.init()
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if not any(text in reason for text in (*_NO_DEVICE, _FORKED)):
            raise UserError(
                f"torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use this machine's GPUs: "
                f"{reason.partition(' Please ')[0][:300]} Update the driver or install another torch, or {_ON_CPUS}"
            ) from None


def runs_on(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether kernels that were built for architectures such as ``sm_90`` and ``compute_90`` run on a GPU.

    Machine code runs on its own major version from its minor version on, PTX on everything later.
    """
    major, minor = capability
    for one in architectures:
        kind, _, number = one.partition("_")
        version = int("".join(filter(str.isdigit, number)))
        if kind == "sm" and version // 10 == major and version % 10 <= minor:
            return True
        if kind == "compute" and version <= 10 * major + minor:
            return True
    return False


def check_devices(environment: Mapping[str, str] = os.environ) -> None:
    """UserError where this machine has more processes than GPUs, or where torch cannot use them.

    environment: what the launcher set.
    """
    if not cpu.has_cuda():
        return
    _check_processes(environment)
    _start_cuda()
    capability, architectures = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    if architectures and not runs_on(capability, architectures):
        raise UserError(
            f"torch {torch.__version__} has no kernels for the {torch.cuda.get_device_name()} (sm_{capability[0]}"
            f"{capability[1]}), only for {', '.join(architectures)}: install a torch that has, or {_ON_CPUS}"
        )


def _check_processes(environment: Mapping[str, str]) -> None:
    """NCCL takes one process a GPU."""
    processes = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    processes = max(processes, int(environment.get("LOCAL_RANK", "0")) + 1)
    gpus = torch.cuda.device_count()
    if processes > gpus:
        plural = "" if gpus == 1 else "s"
        raise UserError(
            f"{processes} processes were started on this machine, but torch sees {gpus} GPU{plural}: start at most {gpus}, "
            f"one for each (--nproc-per-node {gpus}), or {_ON_CPUS}"
        )


def device_named(name: str | None) -> torch.device:
    """``--device`` of a tool; None is the GPU where there is one, else the CPU. UserError for what is not there."""
    if name is None:
        check_driver()
        return torch.device("cuda" if cpu.has_cuda() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: there are cpu, cuda and cuda:N") from None
    if device.type == "cuda" and not cpu.has_cuda():
        raise UserError(f"--device {name}: {no_gpu()}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs, counted from 0")
    return device


@dataclass(frozen=True)
class _NeedsGPU:
    """An option that Megatron takes without a GPU, and fails with later."""

    option: str
    flag: str
    without: Any = False
    """Its value if it is not requested."""
    instead: str = "torch finds none here"


_NEED_GPU = (
    _NeedsGPU("cuda_graph_impl", "--cuda-graph-impl", "none"),
    _NeedsGPU("use_megatron_fsdp", "--use-megatron-fsdp", instead="--use-torch-fsdp2 runs without"),
    _NeedsGPU("log_device_memory_used", "--log-device-memory-used"),
    _NeedsGPU("record_memory_history", "--record-memory-history"),
    _NeedsGPU("gpu_sniff_test_interval", "--gpu-sniff-test-interval", None),
    _NeedsGPU("pipeline_model_parallel_comm_backend", "--pipeline-model-parallel-comm-backend", None),
    _NeedsGPU("nccl_ub", "--use-nccl-ub"),
    _NeedsGPU("use_sharp", "--use-sharp"),
    _NeedsGPU("moe_routing_trace_path", "--moe-routing-trace-path", None),
)


def need_gpu(args: MegatronArgs) -> list[str]:
    """A line for each option that is set and needs a GPU, where there is none. args: the plain parse."""
    if cpu.has_cuda():
        return []
    asked = [row for row in _NEED_GPU if getattr(args, row.option) != row.without]
    if args.distributed_backend == "nccl":
        asked.append(_NeedsGPU("distributed_backend", "--distributed-backend nccl", instead="gloo runs without"))
    return [f"{row.flag} needs a GPU; {row.instead}" for row in asked]


def check_needs_gpu(args: MegatronArgs) -> None:
    """UserError for options that need a GPU, where there is none. args: the plain parse."""
    lines = need_gpu(args)
    if lines:
        raise UserError("; ".join(lines))


def set_connections(args: MegatronArgs) -> None:
    """``CUDA_DEVICE_MAX_CONNECTIONS`` as Megatron asks for it, where the user has not set it. args: the plain parse.

    Before Blackwell, tensor and context parallelism count on the order of launches, which one connection keeps. FSDP and
    the overlap of experts want more. Call before the first CUDA context, which is when the driver reads it.
    """
    split = max(args.tensor_model_parallel_size, args.context_parallel_size) > 1
    overlaps = args.use_torch_fsdp2 or args.use_megatron_fsdp or args.overlap_moe_expert_parallel_comm
    if split and not overlaps and cpu.has_cuda() and torch.cuda.get_device_capability()[0] < _BLACKWELL:
        os.environ.setdefault(_CONNECTIONS, "1")
