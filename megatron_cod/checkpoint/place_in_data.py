"""Whether a resumed run continues at the same place in its data: a number of samples, which needs the same order."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_cod.args import MegatronArgs
from megatron_cod.common.lists import listed
from megatron_cod.data.datasets.blends import blends_of
from megatron_cod.errors import UserError


def check_place_in_data(checkpoint: Path, saved: argparse.Namespace, args: MegatronArgs) -> None:
    """UserError where a resumed run has samples of another length, unless a new phase begins there."""
    theirs = getattr(saved, "seq_length", None)
    if not _keeps_its_place(saved, args) or theirs in (None, args.seq_length):
        return
    step = int(checkpoint.name.removeprefix("iter_"))
    if step not in (args.phase_transition_iterations or []):
        raise UserError(
            f"checkpoint {checkpoint} was trained at --seq-length {theirs}, this run has {args.seq_length}: its place "
            f"in the data is counted in samples; to begin a phase there, give --phase-transition-iterations {step}"
        )


def data_warnings(checkpoint: Path, saved: argparse.Namespace, args: MegatronArgs) -> list[str]:
    """Lines where a resumed run keeps its place, a number of samples, in data that is in another order than before."""
    if not _keeps_its_place(saved, args):
        return []
    place = f"sample {saved.consumed_train_samples:,}"
    warnings = []
    new = _new_content(saved, args)
    if new:
        warnings.append(f"was not trained on what is now in {listed(new, 4)}")
    changed = _changed_order(saved, args)
    if changed:
        warnings.append(f"was trained with {'; '.join(changed)}")
    return [
        f"WARNING: {checkpoint} {warning}: training continues at {place} of the new order, so documents may be read again "
        "or never"
        for warning in warnings
    ]


def _keeps_its_place(saved: argparse.Namespace, args: MegatronArgs) -> bool:
    return not (args.no_load_optim or args.finetune) and bool(getattr(saved, "consumed_train_samples", 0))


def _new_content(saved: argparse.Namespace, args: MegatronArgs) -> list[str]:
    """Prefixes of datasets that the checkpoint was not trained on."""
    theirs, ours = getattr(saved, "data_content", None), getattr(args, "data_content", None)
    if theirs is None or ours is None:
        return []
    return [prefix for prefix, digest in ours.items() if digest not in theirs.values()]


_ORDER = ("seed", "split", "dataloader_type")
"""Arguments that change which samples come when, beside the datasets and their weights."""


def _changed_order(saved: argparse.Namespace, args: MegatronArgs) -> list[str]:
    """What the order of the samples depends on and differs: "--seed 1, and this run with 2"."""
    changed = []
    for name in _ORDER:
        theirs, ours = getattr(saved, name, None), getattr(args, name)
        if theirs is not None and theirs != ours:
            changed.append(f"--{name.replace('_', '-')} {theirs}, and this run with {ours}")
    theirs, ours = _training_shares(saved), _training_shares(args)
    if theirs and ours and theirs != ours:
        changed.append(f"weights {_percent(theirs)}, and this run with {_percent(ours)}")
    return changed


def _training_shares(args: MegatronArgs) -> list[float] | None:
    """The shares of the datasets that are trained on; None where their lengths decide or the files naming them are gone."""
    try:
        blends = blends_of(args)
    except (UserError, AttributeError):
        return None
    blend = blends.get("train") or blends.get("all")
    return [round(share, 6) for share in blend.shares() or ()] if blend else None


def _percent(shares: list[float]) -> str:
    return ", ".join(f"{share:.4g}" for share in shares)
