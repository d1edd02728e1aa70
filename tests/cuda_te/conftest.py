"""Every test of this folder is marked ``cuda_te`` and skips, with the reason, where Transformer Engine is not built.

Its real Python code, core library and torch extension run on emulated devices. Their kernels compute nothing: a test may
check what starts, shapes, memory, launches, files and messages, never a loss.
"""

from pathlib import Path

import pytest

from tests.gpu_emulation.marks import mark_folder
from tests.gpu_emulation.transformer_engine.__main__ import SWITCH


@pytest.hookimpl(tryfirst=True)  # before -m selects by the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_folder(items, Path(__file__).parent, "cuda_te", SWITCH, "make test-cuda-te")
