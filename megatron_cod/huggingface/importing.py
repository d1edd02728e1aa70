"""Hugging Face directory -> Megatron checkpoint, unit by unit."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from megatron_cod import __version__
from megatron_cod.checkpoint.directory import RELEASE, TRACKER
from megatron_cod.checkpoint.readme import write_readme
from megatron_cod.checkpoint.scheme_record import record
from megatron_cod.checkpoint.writer import CheckpointWriter, Piece
from megatron_cod.common.lists import groups_of_bytes
from megatron_cod.common.progress import progress_of_bytes
from megatron_cod.errors import UserError
from megatron_cod.huggingface import companions
from megatron_cod.huggingface.atomic_directory import PartialDirectory
from megatron_cod.huggingface.checkpoint import MegatronCheckpoint
from megatron_cod.huggingface.families.architecture import Architecture
from megatron_cod.huggingface.families.config_fields import fp8_blocks
from megatron_cod.huggingface.families.mapping_rows import NORMS, Unit, units
from megatron_cod.huggingface.families.table import architecture_of, get_family
from megatron_cod.huggingface.folding import (
    Folding,
    fold,
    fold_less_one,
    folding,
    folding_of,
    stock_scheme,
    unfoldable_schemes,
)
from megatron_cod.huggingface.foreign_config import read_config
from megatron_cod.huggingface.import_plan import Change, plan_pieces
from megatron_cod.huggingface.recipe import namespace_of, recipe_of, write_recipe
from megatron_cod.huggingface.source_tensors import check_tensors, predicted_in
from megatron_cod.huggingface.verification import (
    MegatronLogits,
    compare,
    loaded_whole,
    logits_of,
    logits_or_reason,
    model_of,
    probe_tokens,
    too_little_memory,
)
from megatron_cod.huggingface.weights_reader import Source, read_json
from megatron_cod.schemes.table import LNS, get_scheme

RECIPE = "recipe.yaml"
_FILE_BYTES = 512 << 20


@dataclass(frozen=True)
class ImportJob:
    """The user's options."""

    model: Path
    output: Path
    as_scheme: str | None = None
    """A scheme that stock weights can be treated as; None is pre_ln, or for unfolded weights the scheme they are of."""
    unfolded_lns: bool = False
    """The gammas are those of LNS, not multiplied by its factors (the authors' released weights)."""
    padded_vocab: int | None = None
    prediction: bool = True
    """Take the layers of multi-token prediction along, where the directory has them."""
    file_bytes: int = _FILE_BYTES
    dry_run: bool = False
    """Check everything, write nothing."""
    verify: bool = True
    """Compare the checkpoint with transformers' model, where ``import_model`` is given Megatron's."""


@dataclass
class Outcome:
    """The result of a conversion."""

    output: Path
    arch: Architecture
    scheme: Folding
    tensors: int = 0
    bytes: int = 0
    notes: list[str] = field(default_factory=list)


def _schemes(job: ImportJob, config: dict[str, Any], arch: Architecture) -> tuple[Folding, Folding]:
    """(scheme of the stored numbers, scheme to write). UserError for contradictory options."""
    recorded = config.get(companions.KEY)
    layers = arch.layers
    stock, known = folding(stock_scheme(arch.branch_norms), layers), unfoldable_schemes(arch.branch_norms)
    made = folding_of(recorded, layers) if isinstance(recorded, dict) else stock
    folded = not isinstance(recorded, dict) or bool(recorded.get("folded", True))
    if job.unfolded_lns and isinstance(recorded, dict) and folded:
        raise UserError(f"--unfolded-lns: {job.model} records that its depth factors are folded in")
    if job.unfolded_lns and LNS.name not in known:
        raise UserError(f"--unfolded-lns: {arch.family} has norms behind its branches, too, as no LNS model has")
    held = folding(LNS, layers) if job.unfolded_lns else stock if folded else made
    if job.as_scheme is None:
        return held, held
    if job.as_scheme not in known:
        raise UserError(
            f"--as-scheme {job.as_scheme}: a model of {arch.family} can be trained on as {', '.join(known)}"
        )
    asked = folding(get_scheme(job.as_scheme), layers)
    # The options that the model was trained with, if recorded.
    return held, next((one for one in (held, made) if one.scheme == asked.scheme), asked)


def _arguments(arch: Architecture, scheme: Folding, recipe: dict[str, Any]) -> argparse.Namespace:
    args = namespace_of(recipe)
    args.norm_scheme, args.init_policy = scheme.scheme, None
    for name, value in scheme.options().items():
        setattr(args, name, value)
    record(args)
    args.consumed_train_samples = args.consumed_valid_samples = 0
    args.tensor_model_parallel_size = args.pipeline_model_parallel_size = 1
    return args


def import_model(
    job: ImportJob, log: Callable[[str], None] = lambda _: None, megatron: MegatronLogits | None = None
) -> Outcome:
    """Write ``job.output``: a checkpoint that training loads at any layout, the recipe of its model, tokenizer files.

    megatron: what computes the written checkpoint's logits, to compare with transformers'. Raises UserError, and leaves
    nothing under the output's name, for what is not convertible, and for a result that computes something else.
    """
    if not job.model.is_dir():
        raise UserError(f"{job.model} is no directory")
    config, unread = read_config(job.model)
    arch, notes = architecture_of(config)
    notes += unread
    arch, rows = _with_rows(job, arch)
    notes += rows
    held, scheme = _schemes(job, config, arch)
    trained = (config.get(companions.KEY) or {}).get("norm_scheme", scheme.scheme)
    if trained != scheme.scheme and trained in unfoldable_schemes(arch.branch_norms):
        notes.append(f"the model was trained with {trained}; give --as-scheme {trained} to train it on with that")
    source = Source(job.model, fp8_blocks(config))
    arch = replace(arch, predicted=predicted_in(source, arch) if job.prediction else 0)
    if source.is_quantised:
        notes.append("weights in fp8 are multiplied by the scales of their blocks, and written in fp32")
    named_units = list(units(get_family(arch.family).rows, arch))
    notes += check_tensors(source, named_units, arch)
    wanted = [unit for unit in named_units if not unit.row.copy]
    originals = companions.Originals(job.model)
    change = Change(held, scheme, originals, arch.multipliers.residual)
    lost: list[int] = []
    pieces = plan_pieces(source, wanted, arch, change, lost.append)
    notes += originals.notes()
    for note in notes:
        log(f"note: {note}")
    outcome = Outcome(job.output, arch, scheme, len(pieces), sum(piece.bytes for piece in pieces), notes)
    if job.dry_run:
        return outcome

    asked = {"job": [str(value) for value in vars(job).values()], "files": list(source.fingerprint()), "config": config}
    part = PartialDirectory(job.output, asked)
    recipe = recipe_of(arch)
    recipe["vocab-size"] = min(max(arch.vocab, companions.tokens_in(job.model)), arch.padded_vocab)
    _write_checkpoint(part, pieces, _arguments(arch, scheme, recipe), job.file_bytes, lost)
    copied = companions.copy(job.model, part.folder / companions.FOLDER)
    copied, converted = companions.convert_tokenizer(job.model, part.folder / companions.FOLDER, copied)
    if converted:
        outcome.notes.append(converted)
        log(f"note: {converted}")
    tokenizer = companions.tokenizer_recipe(copied, job.output)
    write_recipe(part.folder / RECIPE, recipe, scheme.scheme, scheme.options(), tokenizer)
    (part.folder / TRACKER).write_text(RELEASE)
    write_readme(part.folder, scheme.scheme, __version__)
    try:
        MegatronCheckpoint(part.folder / RELEASE).check(wanted, arch)
        if job.verify and megatron is not None:
            log(_verified(job, part.folder, change, source, wanted, arch, megatron))
    except UserError:
        part.discard()
        raise
    part.finish()
    if sum(lost):
        notes.append(
            f"{sum(lost)} elements have no fp32 number that the factor brings back to them exactly: those are "
            f"off by one unit in the last place"
        )
        log(f"note: {notes[-1]}")
    return outcome


def _with_rows(job: ImportJob, arch: Architecture) -> tuple[Architecture, list[str]]:
    """The architecture with the requested rows, and notes. UserError for fewer than the model has."""
    notes = []
    if job.padded_vocab is not None:
        if job.padded_vocab < arch.vocab:
            raise UserError(f"--padded-vocab-size {job.padded_vocab} is less than the model's {arch.vocab} tokens")
        arch = replace(arch, padded_vocab=job.padded_vocab)
        if job.padded_vocab > arch.vocab:
            notes.append("the padding rows of the head are zeros, and take part in Megatron's softmax")
    tokens = companions.tokens_in(job.model)
    if tokens > arch.padded_vocab:
        notes.append(
            f"the tokenizer has {tokens} tokens, the model {arch.padded_vocab} rows: training with it takes an import with "
            f"--padded-vocab-size {tokens} or more"
        )
    return arch, notes


def _verified(
    job: ImportJob,
    folder: Path,
    change: Change,
    source: Source,
    wanted: list[Unit],
    arch: Architecture,
    megatron: MegatronLogits,
) -> str:
    """Compare transformers' model with the checkpoint in ``folder``; a line about what was compared."""
    reason = too_little_memory(sum(torch.Size(shape).numel() for unit in wanted for shape in unit.shapes))
    if reason is not None:
        return f"not verified: {reason}"
    tokens = probe_tokens(arch.vocab, arch.positions)
    if change.held.is_stock and not source.is_quantised:
        model = loaded_whole(job.model, left_over=False)
    else:  # the stored numbers lack factors, which a stock loader does not know of, or are in blocks that it refuses
        config = {**read_json(job.model / "config.json"), "architectures": [get_family(arch.family).model_class]}
        config.pop("quantization_config", None)
        model = model_of(config, _with_factors(source, wanted, arch, change), job.model.name)
    expected = logits_of(model, tokens)
    del model
    found = logits_or_reason(megatron, folder, tokens)
    if isinstance(found, str):
        return f"not verified: Megatron's model is not built here: {found}"
    return "verified: " + compare(expected, found, "transformers and Megatron")


def _with_factors(source: Source, wanted: list[Unit], arch: Architecture, change: Change) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    less_one = get_family(arch.family).less_one
    for unit in wanted:
        lacking = change.held.factor(unit.row.part, unit.layer)
        whole = fold_less_one if less_one and unit.row.part in NORMS else fold
        state |= {name: whole(source.read(name), lacking, torch.float32) for name in unit.names}
    return state


def _write_checkpoint(
    part: PartialDirectory, pieces: list[Piece], args: argparse.Namespace, file_bytes: int, lost: list[int]
) -> None:
    """All files of the checkpoint, but for those that an interrupted run has written.

    lost: grows by the elements that do not come back exactly; what a kept file lost is taken from its note.
    """
    parcels = groups_of_bytes(pieces, file_bytes)
    names = [f"{RELEASE}/{CheckpointWriter.file_of(number)}" for number in range(len(parcels))]
    done = [part.done(name) for name in names]
    part.check_space(sum(p.bytes for note, parcel in zip(done, parcels, strict=True) if note is None for p in parcel))
    progress = progress_of_bytes(sum(piece.bytes for piece in pieces))
    try:
        writer = CheckpointWriter(part.folder / RELEASE, progress.add)
        for number, (name, note, parcel) in enumerate(zip(names, done, parcels, strict=True)):
            if note is not None:
                writer.resume(number, parcel, note["index"])
                lost.append(note["lost"])
                progress.pace.skip(sum(piece.bytes for piece in parcel))
                continue
            before = sum(lost)
            index = writer.write(number, parcel)
            part.mark(name, {"index": index, "lost": sum(lost) - before})
        writer.finish(len(parcels), args)
    finally:
        progress.close()
