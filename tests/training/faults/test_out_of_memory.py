"""What counts as a device out of memory, wherever it came from, and what does not."""

from types import SimpleNamespace

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from megatron_cod.errors import may_pass
from megatron_cod.training.faults.out_of_memory import DeviceOutOfMemory, out_of_memory, reported_in_one_line

ALLOCATOR = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB"
)


def wrapped(error: Exception) -> BaseException:
    """As torch's checkpoints do it: rank -> (error, its traceback)."""
    return CheckpointException("load", {1: (error, SimpleNamespace())})


def raised_from(error: Exception, *, hidden: bool) -> Exception:
    try:
        try:
            raise error
        except RuntimeError as first:
            raise ValueError("the checkpoint cannot be read") from (None if hidden else first)
    except ValueError as second:
        return second


DEVICE = {
    "the allocator": ALLOCATOR,
    "the driver": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "NCCL": torch.distributed.DistBackendError("NCCL error: unhandled cuda error: Cuda failure 2 'out of memory'"),
    "a checkpoint's other rank": wrapped(ALLOCATOR),
    "behind another error": raised_from(ALLOCATOR, hidden=False),
    "behind another error that hides it": raised_from(ALLOCATOR, hidden=True),
}

OTHERS = {
    "the host": RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    ),
    "a loader": RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed"),
    "a shape": RuntimeError("The size of tensor a (128) must match the size of tensor b (127)"),
    "a checkpoint's disk": wrapped(OSError("no space left")),
}


@pytest.mark.parametrize("name", DEVICE)
def test_finds_a_device_without_memory(name):
    assert out_of_memory(DEVICE[name]) is not None


@pytest.mark.parametrize("name", OTHERS)
def test_other_errors_are_unchanged(name):
    assert out_of_memory(OTHERS[name]) is None
    kind = type(OTHERS[name])
    with pytest.raises(kind), reported_in_one_line(SimpleNamespace(), lambda: "in set-up"):
        raise OTHERS[name]


def test_starting_again_would_change_nothing():
    """Whatever connection was lost meanwhile."""
    error = DeviceOutOfMemory("rank 0: the device is out of memory")
    error.__context__ = torch.distributed.DistBackendError("connection closed")
    assert not may_pass(error)
