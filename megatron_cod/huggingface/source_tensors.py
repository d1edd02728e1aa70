"""The tensors of a model directory, compared with those of its family: missing, extra, misshapen, copies of others."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_cod.errors import UserError
from megatron_cod.huggingface.families.architecture import Architecture
from megatron_cod.huggingface.families.mapping_rows import Unit
from megatron_cod.huggingface.verification import named
from megatron_cod.huggingface.weights_reader import Source

_MOST_SHAPES = 3
_MOST_LAYERS = 8


def _behind(arch: Architecture, count: int) -> tuple[str, ...]:
    """What the names of layers behind the last one begin with."""
    return tuple(f"model.layers.{arch.layers + number}." for number in range(count))


def predicted_in(source: Source, arch: Architecture) -> int:
    """How many layers of multi-token prediction to import: those of the config, unless the directory has none at all."""
    found = _behind(arch, arch.predicted)
    return arch.predicted if found and any(name.startswith(found) for name in source.shapes) else 0


def check_tensors(source: Source, wanted: Sequence[Unit], arch: Architecture) -> list[str]:
    """Notes on what is omitted. UserError that names every missing, extra or misshapen tensor.

    Copies of other tensors may be missing; one that differs from the other is refused.
    """
    expected = {name: shape for unit in wanted for name, shape in zip(unit.names, unit.shapes, strict=True)}
    copies = {name for unit in wanted if unit.row.copy for name in unit.names}
    notes, faults = [], []
    extra = sorted(source.shapes.keys() - expected.keys())
    if arch.tied and "lm_head.weight" in extra:
        if not torch.equal(source.read("lm_head.weight"), source.read("model.embed_tokens.weight")):
            raise UserError("lm_head.weight differs from model.embed_tokens.weight, but tie_word_embeddings is true")
        extra.remove("lm_head.weight")
    behind = _behind(arch, _MOST_LAYERS) if arch.latent is not None else ()
    prediction = [name for name in extra if behind and name.startswith(behind)]
    if prediction:
        notes.append(f"the multi-token-prediction layers ({len(prediction)} tensors) are omitted")
    extra = [name for name in extra if name not in prediction]
    missing = sorted(expected.keys() - source.shapes.keys() - copies)
    if missing:
        faults.append(f"missing: {named(missing)}")
    if extra:
        faults.append(f"not known in {arch.family}: {named(extra)}")
    wrong = [name for name in expected if source.shapes.get(name, expected[name]) != expected[name]]
    for name in wrong[:_MOST_SHAPES]:
        faults.append(f"{name} is {list(source.shapes[name])}, the config has {list(expected[name])}")
    if len(wrong) > _MOST_SHAPES:
        faults.append(f"and {len(wrong) - _MOST_SHAPES} more of other shapes")
    if faults:
        raise UserError(f"{source.folder}: {'; '.join(faults)}")
    _check_copies(source, wanted)
    return notes


def _check_copies(source: Source, wanted: Sequence[Unit]) -> None:
    """UserError for a copy that differs from the tensor that Megatron has in its place."""
    own = {unit.row.megatron[0]: unit.names[0] for unit in wanted if unit.layer is None}
    for unit in wanted:
        copy = unit.names[0]
        if not unit.row.copy or copy not in source.shapes:
            continue
        original = next(own[key] for key in unit.row.megatron if key in own)
        if not torch.equal(source.read(copy), source.read(original)):
            raise UserError(
                f"{copy} differs from {original}, which Megatron's prediction layers share; --no-mtp omits those layers"
            )
