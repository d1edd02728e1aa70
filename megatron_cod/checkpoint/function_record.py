"""What function a model computes beside its weights: recorded with every checkpoint, compared before one is loaded.

The record is made from the *built* configuration, so that what Megatron derives from the arguments is in it. Every field of
the configuration is compared but those in ``MAY_DIFFER``: a field that a later Megatron adds is compared until somebody
writes down why it need not be (``tests/checkpoint/test_function_record.py`` fails until it is classified).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from megatron_cod.args import MegatronArgs
from megatron_cod.checkpoint.function_fields import ARGUMENTS, DERIVED, FLAGS, FREE, FUNCTION, TENSORS, WITHOUT_FLAG
from megatron_cod.common.lists import listed
from megatron_cod.errors import UserError

RECORD = "model_function"
"""Under this name a checkpoint's arguments hold it."""


def flag_of(field: str) -> str:
    """The flag that sets a field of the configuration; its name where none does."""
    if field in WITHOUT_FLAG:
        return field
    return FLAGS.get(field, "--" + ARGUMENTS.get(field, field).replace("_", "-"))


_KIND = "type"
"""Of an object in a record: the key of its class, beside its fields."""


def _plain(value: Any) -> Any:
    """A value that pickles without Megatron: a checkpoint's arguments are read without it, too."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    name = getattr(value, "__qualname__", None)  # of functions and classes
    return name or (
        {_KIND: type(value).__qualname__, **_plain(vars(value))} if hasattr(value, "__dict__") else str(value)
    )


def _same(saved: Any, asked: Any) -> bool:
    """Whether two recorded values agree. Earlier versions recorded nothing of an object but its class."""
    return bool(saved == asked) or (isinstance(asked, dict) and isinstance(saved, str) and saved == asked.get(_KIND))


def _where(saved: Any, asked: Any) -> tuple[str, Any, Any]:
    """The first place in which two values differ, and what they have there."""
    if isinstance(saved, dict) and isinstance(asked, dict):
        steps = [(str(key), saved.get(key), asked.get(key)) for key in (*saved, *(k for k in asked if k not in saved))]
    elif isinstance(saved, list) and isinstance(asked, list) and len(saved) == len(asked):
        steps = [(str(number), *pair) for number, pair in enumerate(zip(saved, asked, strict=True))]
    else:
        return "", saved, asked
    key, *pair = next(step for step in steps if step[1] != step[2])
    below, before, now = _where(*pair)
    return f"{key}.{below}".rstrip("."), before, now


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def routing(value: Any) -> Any:
    """Of the ways to balance experts only Sinkhorn's changes who is chosen."""
    kinds = value if isinstance(value, list | tuple) else [value]
    return "sinkhorn" if "sinkhorn" in kinds else "top-k"


def record_of(model_config: Any) -> dict[str, Any]:
    """The record of a built model configuration (``model.SchemeModelConfig``), plain values by the field's name."""
    found: dict[str, Any] = {}
    for config in (model_config.transformer, model_config):
        # Not the fields of its class alone: Megatron gives YaRN's values to the object.
        found |= {name: _plain(value) for name, value in vars(config).items() if name not in FREE}
    found["moe_router_load_balancing_type"] = routing(found.get("moe_router_load_balancing_type"))
    return found


@dataclass(frozen=True)
class Difference:
    """A field in which a checkpoint's model is another than this run's."""

    field: str
    saved: Any
    asked: Any

    @property
    def flag(self) -> str:
        return flag_of(self.field)

    @property
    def fits(self) -> bool:
        """Whether the tensors are the same anyway."""
        return self.field not in TENSORS

    def __str__(self) -> str:
        return self.between("this run has ")

    def between(self, other: str) -> str:
        """Both values; other: what is before the second."""
        name = "" if self.flag == "--" + self.field.replace("_", "-") else f" ({self.field})"
        place, saved, asked = _where(self.saved, self.asked)
        return f"{self.flag}{name}{place and f' {place}:'} {_short(saved)}, {other}{_short(asked)}"


def differences(saved: argparse.Namespace, args: MegatronArgs | argparse.Namespace) -> list[Difference]:
    """Where the model of a checkpoint's arguments is another than that of ``args``, those of tensors first.

    Checkpoints without a record, of an earlier version or an import, are compared by those arguments that both have.
    args: of a run that is to load it, or of another checkpoint.
    """
    theirs, asked = (getattr(one, RECORD, None) for one in (saved, args))
    pairs = _by_arguments(saved, args) if theirs is None or asked is None else _recorded(theirs, asked)
    found = [Difference(name, before, now) for name, before, now in pairs if not _same(before, now)]
    return sorted(found, key=lambda one: one.fits)


def _recorded(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted({*saved, *asked}):
        if name not in FREE and name in saved and name in asked:
            yield name, saved[name], asked[name]


def _gate(args: Any) -> str:
    return "geglu" if getattr(args, "geglu", False) else "silu"


def _by_arguments(saved: argparse.Namespace, args: MegatronArgs) -> Iterator[tuple[str, Any, Any]]:
    seen: set[str] = set()
    for name in sorted(TENSORS | FUNCTION):
        argument = ARGUMENTS.get(name, name)
        if argument in seen or not (hasattr(saved, argument) and hasattr(args, argument)):
            continue
        seen.add(argument)
        before, now = (_plain(getattr(one, argument)) for one in (saved, args))
        if argument == "swiglu":
            before, now = (value and _gate(one) for value, one in ((before, saved), (now, args)))
        if argument == "add_qkv_bias":
            before = before or bool(getattr(saved, "add_bias_linear", False))  # as Megatron's validation has it
        if argument in DERIVED and before is None:
            continue
        if argument == "moe_router_load_balancing_type":
            before, now = routing(before), routing(now)
        yield name, before, now


def check_function(checkpoint: Path, saved: argparse.Namespace, args: MegatronArgs, override: bool) -> list[str]:
    """Lines for the log where the checkpoint's model computes another function and ``override`` allows it.

    UserError without, and always for tensors that do not fit.
    """
    found = differences(saved, args)
    if not found:
        return []
    tensors = [one for one in found if not one.fits]
    line = f"checkpoint {checkpoint} was trained with {listed(tensors or found, 4, '; ')}"
    if tensors:
        raise UserError(f"{line}: its tensors do not fit")
    if not override:
        raise UserError(f"{line}: another function of the same weights; give the same, or --override-model-check")
    return [f"WARNING: {line}; loaded with --override-model-check"]
