"""Input files: found, opened, divided into parts and read as documents."""

from typing import Any

from megatron_cod.former_paths import name_in_former_module


def __getattr__(name: str) -> Any:
    return name_in_former_module(__name__, name)
