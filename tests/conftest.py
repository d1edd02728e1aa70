"""Shared by all tests; the environment that Megatron reads is prepared before anything imports it."""

import os
import socket
from pathlib import Path

import pytest

import megatron_cod.training.environment  # noqa: F401
from megatron_cod import cpu

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="no CUDA device on this machine")
    for item in items:
        if "gpu" in item.keywords and not cpu.has_cuda():
            item.add_marker(skip)


@pytest.fixture(scope="session")
def one_process():
    """Megatron's groups for a world of one, in the test process itself, for modules that ask for them."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    cpu.install()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1)
    yield
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()
