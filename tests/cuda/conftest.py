"""Every test of this folder is marked ``cuda`` and skips, with the reason, where there is no emulated device."""

import os
from pathlib import Path

import pytest

from tests.gpu_emulation.__main__ import SWITCH

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    state = os.environ.get(SWITCH, "run under the emulation: make test-cuda")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cuda)
            if state != "emulated":
                item.add_marker(pytest.mark.skip(reason=state))
