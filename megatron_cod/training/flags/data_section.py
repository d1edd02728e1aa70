"""The ``data:`` section of a recipe, turned into Megatron's flags.

    data:
      train:
        - {path: data/web_text_document, weight: 0.7}
        - {path: data/books_text_document, weight: 0.3}
      valid: data/web_valid_text_document

A split is one dataset, a list of them (their lengths decide the shares), or a list with weights. ``all`` with
``split: 90,5,5`` divides the same datasets into train, valid and test. ``cache`` is a folder for the sample indices.
Paths are relative to the working directory, as on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from megatron_cod.errors import UserError

KEY = "data"
_BLENDS = {
    "train": "train-data-path",
    "valid": "valid-data-path",
    "test": "test-data-path",
    "all": "data-path",
}
_VALUES = {"split": "split", "cache": "data-cache-path"}


def data_flags(section: Any) -> dict[str, Any]:
    """The section as recipe entries: flag name -> value or list of values.

    Raises UserError for unknown keys, naming the nearest, and for entries that are no blend.
    """
    if not isinstance(section, Mapping):
        raise UserError(f"recipe key 'data' must hold a mapping with {', '.join(_BLENDS)}, found {section!r}")
    known = (*_BLENDS, *_VALUES)
    for key in section:
        if key not in known:
            raise UserError(f"unknown recipe key 'data: {key}'{_nearest(str(key), known)}")
    if "all" in section and set(section) & {"train", "valid", "test"}:
        raise UserError("recipe section 'data' has all and a split of its own; name the datasets together or apart")
    if "split" in section and "all" not in section:
        raise UserError("recipe section 'data' has split without all: splits that are named apart are whole datasets")
    flags: dict[str, Any] = {}
    for key, flag in _BLENDS.items():
        if section.get(key) is not None:
            flags[flag] = _blend(f"data: {key}", section[key])
    for key, flag in _VALUES.items():
        if section.get(key) is not None:
            value = section[key]
            flags[flag] = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return flags


def _blend(where: str, value: Any) -> list[str]:
    entries = value if isinstance(value, (list, tuple)) else [value]
    words: list[str] = []
    weighted = [isinstance(entry, Mapping) and "weight" in entry for entry in entries]
    if any(weighted) and not all(weighted):
        raise UserError(f"recipe key '{where}': give every dataset a weight, or none")
    for entry in entries:
        if isinstance(entry, str):
            words.append(entry)
            continue
        if not isinstance(entry, Mapping):
            raise UserError(
                f"recipe key '{where}' must hold dataset prefixes or {{path: ..., weight: ...}}, found {entry!r}"
            )
        for key in entry:
            if key not in ("path", "weight"):
                raise UserError(f"unknown recipe key '{where}: {key}'{_nearest(str(key), ('path', 'weight'))}")
        if not isinstance(entry.get("path"), str):
            raise UserError(f"recipe key '{where}': {dict(entry)!r} has no path")
        if "weight" in entry:
            weight = entry["weight"]
            if isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise UserError(
                    f"recipe key '{where}': the weight of {entry['path']} must be a number, found {weight!r}"
                )
            words.append(repr(weight))
        words.append(entry["path"])
    return words


def _nearest(key: str, known: tuple[str, ...]) -> str:
    near = get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
