"""Every test of this folder is marked ``cuda_te`` and skips, with the reason, where Transformer Engine is not built.

Its real Python code, core library and torch extension run on emulated devices. Their kernels compute nothing: a test may
look at what starts, at shapes, memory, launches, files and messages, never at a loss.
"""

import os
from pathlib import Path

import pytest

from tests.gpu_emulation.transformer_engine.__main__ import SWITCH

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    state = os.environ.get(SWITCH, "the real Transformer Engine on the emulated device: make test-cuda-te")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cuda_te)
            if state != "emulated":
                item.add_marker(pytest.mark.skip(reason=state))
