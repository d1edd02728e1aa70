"""Megatron checkpoint -> a directory that stock transformers, vLLM, llama.cpp and lm-eval load, unit by unit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_cod import __version__
from megatron_cod.common.lists import groups_of_bytes
from megatron_cod.common.progress import progress_of_bytes
from megatron_cod.errors import UserError
from megatron_cod.huggingface import companions, model_card, side_files
from megatron_cod.huggingface.atomic_directory import PartialDirectory
from megatron_cod.huggingface.checkpoint import MegatronCheckpoint, find_checkpoint
from megatron_cod.huggingface.export_job import DTYPES, Exported, ExportJob
from megatron_cod.huggingface.export_weights import Making, plain_norm
from megatron_cod.huggingface.families.architecture import Architecture
from megatron_cod.huggingface.families.mapping_rows import NORMS, OUTPUTS, Unit, units
from megatron_cod.huggingface.families.table import config_of, get_family
from megatron_cod.huggingface.folding import folding, folding_of_checkpoint, is_warming_up, stock_scheme
from megatron_cod.huggingface.megatron_args import architecture_of_args
from megatron_cod.huggingface.safetensors_writer import Parcel, missing_bytes, write_shards
from megatron_cod.huggingface.verification import (
    MegatronLogits,
    NotTheSame,
    compare,
    loaded_whole,
    logits_of,
    logits_or_reason,
    model_of,
    named,
    probe_tokens,
    too_little_memory,
)
from megatron_cod.huggingface.weights_reader import Source, read_json

# Keys of RoPE and precision that the config of another model may have, and that ours replaces.
_OVERRIDDEN = (
    *("rope_parameters", "dtype", "torch_dtype", "quantization_config", "auto_map", "transformers_version"),
    "layer_types",
)


def exported(
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    fold_factors: bool = True,
    family: str | None = None,
    vocab: int | None = None,
    like: dict[str, Any] | None = None,
) -> Exported:
    """Open a checkpoint directory (``iter_N``) as stock tensors; only its arguments are read yet.

    dtype: of every tensor; None keeps each one's own. like: a config whose other keys (token ids, ...) are taken over.
    Raises UserError for a damaged checkpoint, an architecture or a norm scheme that no stock model computes.
    """
    checkpoint = MegatronCheckpoint(path)
    scheme = folding_of_checkpoint(checkpoint.args, checkpoint.iteration)
    like = like or {}
    if vocab is None and like.get("vocab_size"):
        # Of an import with more rows, for tokens that the model did not have, those are trained rows too.
        known = getattr(checkpoint.args, "vocab_size", None) or 0
        vocab = max(int(like["vocab_size"]), min(known, checkpoint.args.padded_vocab_size))
    arch, factors = architecture_of_args(checkpoint.args, vocab, family, like.get("model_type"), scheme.branch_norms)
    notes = []
    if arch.predicted and is_warming_up(checkpoint.args, checkpoint.iteration, arch.layers + arch.predicted):
        notes.append("the multi-token-prediction layers are in the residual warm-up, which no stock model computes")
        arch = replace(arch, predicted=0)
    wanted = list(units(get_family(arch.family).rows, arch))
    notes += checkpoint.check(wanted, arch, lambda unit: scheme.makes(unit.row.part), scheme.shared)
    if (scheme.has_learned or scheme.shared) and not fold_factors:
        raise UserError(f"--no-fold: the learned scales of {scheme.scheme} have no place in a stock architecture")
    if not factors.is_stock:
        notes.append(f"muP's multipliers are in the weights, which are those of a plain model: {factors}")
    arch = _with_residual(arch, like, checkpoint, wanted)
    applied = scheme if fold_factors else folding(stock_scheme(scheme.branch_norms), scheme.layers)
    making = Making(checkpoint, arch, applied, factors, checkpoint.shared(scheme.shared))
    parcels: list[Parcel] = []
    originals: dict[str, Callable[[], Tensor]] = {}
    for unit in wanted:
        kept = dtype or checkpoint.dtype(unit)
        # The choice of experts hangs on this bias: transformers holds it in fp32 too.
        if unit.row.megatron[0].endswith("expert_bias"):
            kept = torch.float32
        make = partial(making.make, unit, kept)
        exact = partial(making.make, unit, torch.float32)
        parcels.append(Parcel(unit.names, unit.shapes, (kept,) * len(unit.names), make, exact))
        if unit.row.part in NORMS and applied.factor(unit.row.part, unit.layer) != 1.0 and not making.less_one:
            originals[unit.names[0]] = partial(plain_norm, checkpoint, unit)
    widest = dtype or max((parcel.dtypes[0] for parcel in parcels), key=lambda found: found.itemsize)
    if not fold_factors and not scheme.is_stock:
        notes.append(
            f"WARNING: --no-fold: the weights are those of {scheme.scheme} without its depth factors; stock transformers "
            f"loads them without a word and computes something else"
        )
    stored = max((checkpoint.dtype(unit) for unit in wanted), key=lambda found: found.itemsize)
    if stored.itemsize > widest.itemsize:
        notes.append(f"weights are rounded from {_short(stored)} to {_short(widest)}: an import gives the rounded ones")
    # Without a tokenizer there is no padding: the id that a class has by default may be beyond the vocabulary.
    others = {"pad_token_id": None, **{key: value for key, value in like.items() if key not in _OVERRIDDEN}}
    config = {**others, **config_of(arch)}
    config |= {"torch_dtype": _short(widest), "dtype": _short(widest)}
    config[companions.KEY] = {
        **scheme.identity(),
        "folded": bool(fold_factors),
        "version": __version__,
    }
    return Exported(arch, scheme, fold_factors, config, parcels, originals, checkpoint.args, notes)


def _with_residual(
    arch: Architecture, like: dict[str, Any], checkpoint: MegatronCheckpoint, wanted: list[Unit]
) -> Architecture:
    """The architecture with the multiplier of the branches that the model came with, which an import has folded.

    Only where rows are in fp32, as an import has them: of narrower ones the quotient would be rounded a second time.
    """
    outputs = {checkpoint.dtype(unit) for unit in wanted if unit.row.part in OUTPUTS}
    residual = float(like.get("residual_multiplier") or 1.0) if outputs == {torch.float32} else 1.0
    asked = replace(arch, multipliers=replace(arch.multipliers, residual=residual))
    return replace(arch, multipliers=get_family(arch.family).multiplies(asked))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def export_model(
    job: ExportJob, log: Callable[[str], None] = lambda _: None, megatron: MegatronLogits | None = None
) -> Exported:
    """Write ``job.output``, and read it again before it gets that name.

    megatron: what computes the checkpoint's own logits, to compare with. Raises UserError, and leaves nothing under that
    name, for what is not convertible, and for a result that does not load whole or computes something else.
    """
    path = find_checkpoint(job.checkpoint, job.step)
    like = job.like or _came_with(path)
    found = exported(
        path,
        dtype=DTYPES[job.dtype] if job.dtype else None,
        fold_factors=job.fold,
        family=job.family,
        vocab=job.vocab,
        like=_other_keys(read_json(like / "config.json"), job.family) if like else None,
    )
    for note in found.notes:
        log(note if note.startswith("WARNING") else f"note: {note}")
    if job.dry_run:
        return found
    planned = groups_of_bytes(found.parcels, job.shard_bytes)
    stat = (path / ".metadata").stat()
    part = PartialDirectory(
        job.output,
        {"job": [str(value) for value in vars(job).values()], "source": [str(path), stat.st_size, stat.st_mtime_ns]},
    )
    part.check_space(missing_bytes(part, planned))
    progress = progress_of_bytes(sum(parcel.bytes for parcel in found.parcels))
    try:
        write_shards(part, planned, progress.add, progress.pace.skip)
    finally:
        progress.close()
    if found.originals:
        companions.save_originals(part.folder, {name: make() for name, make in found.originals.items()})
    # A directory that the user names is taken as it is.
    copied = companions.copy(job.like, part.folder, config=False) if job.like else []
    if not set(copied) & set(companions.TOKENIZER_FILES):
        copied += companions.copy_for_export(found.args, like if not job.like else None, part.folder, found.config)
    if not set(copied) & set(companions.TOKENIZER_FILES):
        note = "no tokenizer files were found to copy; --like DIR takes them from a Hugging Face directory"
        found.notes.append(note)
        log(f"note: {note}")
    if job.vocab is None:
        _check_tokens(part, found)
    if like is None:
        side_files.name_ids(found.args, part.folder, found.config)
    for line in side_files.agree(found.args, part.folder, found.config):
        log(f"note: {line}")
    (part.folder / "config.json").write_text(json.dumps(found.config, indent=2) + "\n")
    has_tokenizer = bool(set(copied) & set(companions.TOKENIZER_FILES))
    (part.folder / model_card.NAME).write_text(model_card.model_card(found, path, job, has_tokenizer))
    try:
        _check_files(part.folder, found.parcels)
        if job.verify:
            log(_verified(part.folder, found, path, megatron, job.fold))
    except UserError:
        part.discard()
        raise
    part.finish()
    return found


def _check_tokens(part: PartialDirectory, found: Exported) -> None:
    """UserError where the tokenizer has more tokens than the rows that were kept, and the checkpoint has rows for them."""
    rows, padded = found.arch.vocab, found.arch.padded_vocab
    wanted = min(companions.tokens_in(part.folder), padded)
    if wanted > rows:
        part.discard()
        raise UserError(
            f"the tokenizer has {wanted} tokens, but the checkpoint's --vocab-size keeps only {rows} of {padded} rows: "
            f"give --vocab-size {wanted}"
        )


def _check_files(folder: Path, parcels: Sequence[Parcel]) -> None:
    """UserError unless the files hold these tensors and no others."""
    held = Source(folder).shapes
    wanted = {name: shape for parcel in parcels for name, shape in zip(parcel.names, parcel.shapes, strict=True)}
    wrong = [name for name in {*held, *wanted} if held.get(name) != wanted.get(name)]
    if wrong:
        raise NotTheSame(f"{folder.name} does not hold what was written: {named(wrong)}")


def _verified(folder: Path, found: Exported, checkpoint: Path, megatron: MegatronLogits | None, folded: bool) -> str:
    """Load the directory and compare it; a line about what was compared."""
    reason = too_little_memory(sum(torch.Size(shape).numel() for parcel in found.parcels for shape in parcel.shapes))
    if reason is not None:
        return f"not verified: {reason}"
    tokens = probe_tokens(found.arch.vocab, found.arch.positions)
    stored = logits_of(loaded_whole(folder), tokens)
    loads = "verified: it loads whole in transformers; not compared with Megatron's model"
    if megatron is None or not folded:
        return loads
    expected = logits_or_reason(megatron, checkpoint, tokens)
    if isinstance(expected, str):
        return f"{loads}, which is not built here: {expected}"
    exact = all(dtype == torch.float32 for parcel in found.parcels for dtype in parcel.dtypes)
    if exact:
        return "verified: " + compare(expected, stored, "Megatron and transformers")
    # Rounding is no other function: what is compared are the weights before it, of which the files must be the rounded.
    whole = logits_of(model_of(found.config, _unrounded(found, Source(folder)), folder.name), tokens)
    return "verified: " + compare(expected, whole, "Megatron and transformers, before rounding")


def _unrounded(found: Exported, written: Source) -> dict[str, Tensor]:
    """All tensors in fp32; UserError where a file holds something else than their rounded values."""
    state: dict[str, Tensor] = {}
    for parcel in found.parcels:
        for name, dtype, tensor in zip(parcel.names, parcel.dtypes, parcel.exact(), strict=True):
            if not torch.equal(tensor.to(dtype), written.read(name)):
                raise NotTheSame(f"{written.folder.name}: {name} is not what was made of the checkpoint")
            state[name] = tensor
    return state


def _came_with(checkpoint: Path) -> Path | None:
    """The directory with the companions of the imported model that a checkpoint is, or was trained on from."""
    named = getattr(MegatronCheckpoint(checkpoint).args, "tokenizer_model", None)
    folders = [checkpoint.parent / companions.FOLDER, *([Path(named)] if named else [])]
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def _other_keys(config: dict[str, Any], family: str | None) -> dict[str, Any]:
    """A config without what an earlier export recorded; of another family, only the ids of special tokens."""
    if family is not None and config.get("model_type") != family:
        return {key: value for key, value in config.items() if key.endswith("_token_id")}
    return {key: value for key, value in config.items() if key != companions.KEY}
