"""For workers of ``run_ranks``: the emulated device from the first operation, as ``runs.train`` has it."""

import os
from collections.abc import Callable
from typing import Any


def on_device(rank: int, worker: Callable[..., Any], *arguments: Any) -> Any:
    """``worker(rank, *arguments)`` in a rank on its emulated device; what it returns lies on the host."""
    import fakecuda  # on the path of processes under the emulation only
    import torch
    from torch.utils._pytree import tree_map_only

    fakecuda.begin_rank("numerics")
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    assert torch.cuda.is_available()
    found = worker(rank, *arguments)
    assert torch.cuda.max_memory_allocated() > 0, "the device was not used"
    assert not fakecuda.NOT_COMPUTED, fakecuda.NOT_COMPUTED
    return tree_map_only(torch.Tensor, lambda tensor: tensor.cpu(), found)
