"""Every test of this folder is marked ``cuda`` and skips, with the reason, where there is no emulated device."""

from pathlib import Path

import pytest

from tests.gpu_emulation.__main__ import SWITCH
from tests.gpu_emulation.marks import mark_folder


@pytest.hookimpl(tryfirst=True)  # before -m selects by the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_folder(items, Path(__file__).parent, "cuda", SWITCH, "make test-cuda")
