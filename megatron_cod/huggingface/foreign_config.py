"""A Hugging Face ``config.json`` as the installed transformers reads it: with its defaults, its spellings, its lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_cod.errors import UserError
from megatron_cod.huggingface import companions
from megatron_cod.huggingface.families.config_fields import FREE, READ, need
from megatron_cod.huggingface.families.table import architecture_of, get_family
from megatron_cod.huggingface.verification import named, quiet
from megatron_cod.huggingface.weights_reader import read_json

_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


def read_config(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The config in ``folder`` with everything that its family's class fills in, and notes on keys that it does not read.

    UserError for a config that transformers refuses, and by name for what its class has and no table of ours knows.
    """
    raw = read_json(folder / "config.json")
    family = get_family(str(raw.get("model_type") or "(none)"))
    for name in _SIZES:
        if name in raw:
            need(raw, name)
    defaults, read = _as_transformers_reads(raw, family.name)
    known = READ | FREE | family.reads | family.free
    for name, value in defaults.items():
        if name not in known and read.get(name) != value:
            raise UserError(f"config.json has {name} {read.get(name)!r}, which is not known to be carried over")
    strangers = raw.keys() - defaults.keys() - known - {companions.KEY}
    if not strangers:
        return read, []
    return read, [f"transformers does not read these keys of config.json, nor does the import: {named(strangers, 12)}"]


def _as_transformers_reads(raw: dict[str, Any], family: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the class has by default, what it makes of a config)."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family]
    with quiet():
        try:
            return kind().to_dict(), kind.from_dict(raw).to_dict()
        except Exception as error:  # it has its own errors for each kind of nonsense
            architecture_of(raw)  # whose line has more detail, where it refuses the config as well
            text = " ".join(str(error).split())[:200]
            raise UserError(f"config.json is refused by transformers' {kind.__name__}: {text}") from error
