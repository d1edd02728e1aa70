"""Markers for folders of tests that need emulated devices."""

import os
from pathlib import Path

import pytest


def mark_folder(items: list[pytest.Item], folder: Path, marker: str, switch: str, command: str) -> None:
    """Mark every test below ``folder``, and skip it where the environment variable ``switch`` is not "emulated".

    The reason for the skip is the variable's value, which holds what is missing, or ``command`` where it is not set.
    """
    state = os.environ.get(switch, f"runs on emulated devices: {command}")
    for item in items:
        if folder in item.path.parents:
            item.add_marker(getattr(pytest.mark, marker))
            if state != "emulated":
                item.add_marker(pytest.mark.skip(reason=state))
