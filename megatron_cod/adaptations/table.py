"""Names of Megatron and torch that are replaced: one row each, with the reason. Tables: ``cpu``, ``torch_only``."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Adapted:
    """One name that is replaced: where it is, what replaces it, why."""

    module: str
    """Module, or class in a module, that holds the name."""
    name: str
    replacement: Any
    reason: str
    wraps: bool = False
    """Whether ``replacement`` takes the original and returns its replacement."""


def owner(path: str) -> Any:
    """The module or class that holds an adapted name."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, attribute = path.rpartition(".")
        return getattr(importlib.import_module(module), attribute)


def missing_names(rows: Iterable[Adapted]) -> list[str]:
    """Adapted names that the installed torch and Megatron no longer have."""
    return [f"{row.module}.{row.name} ({row.reason})" for row in rows if not hasattr(owner(row.module), row.name)]


def put_in(rows: Iterable[Adapted], table: str) -> None:
    """Replace every name of the rows.

    table: the file that has them, for the RuntimeError that names those Megatron has lost.
    """
    rows = tuple(rows)
    missing = missing_names(rows)
    if missing:
        raise RuntimeError(f"{table} adapts names that are gone: {'; '.join(missing)}")
    for row in rows:
        holder = owner(row.module)
        replacement = row.replacement(getattr(holder, row.name)) if row.wraps else row.replacement
        setattr(holder, row.name, replacement)
