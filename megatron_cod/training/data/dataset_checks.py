"""The datasets of a run, checked before it starts: there, whole, of this vocabulary and tokenizer, and not empty."""

from __future__ import annotations

from collections.abc import Mapping

from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)

from megatron_cod.args import MegatronArgs
from megatron_cod.data.datasets.blends import SPLITS, Blend, blends_of
from megatron_cod.data.datasets.check import DatasetSummary, check_prefix
from megatron_cod.data.datasets.content import content_digest
from megatron_cod.errors import UserError
from megatron_cod.training.data.default_data import make_sample
from megatron_cod.training.data.tokenizer_in_use import trained_with

_MEGATRONS_SPLIT = "969,30,1"  # for --data-path without --split


def check_data(args: MegatronArgs, vocabulary: int | None) -> None:
    """UserError, one clear line, for datasets that are missing, damaged, empty where they are needed, of a larger
    vocabulary or another tokenizer.

    vocabulary: rows of the model's embedding. What the datasets hold is put on ``args``, for the other machines to agree
    with and for checkpoints to record.
    """
    args.data_content = {}
    if args.mock_data:
        if args.full_validation and args.eval_iters:
            raise UserError("--full-validation: --mock-data has no end; remove the flag, for --eval-iters batches")
        return
    blends = blends_of(args)
    if not blends:
        raise UserError("no data: give --data-path PREFIX (made by megatron-cod preprocess), or --mock-data")
    make_sample(args)
    _check_validation(args, blends)
    tokenizer = trained_with(args)
    for name, blend in blends.items():
        for prefix in blend.prefixes:
            summary = check_prefix(prefix, vocab_size=vocabulary, trained_with=tokenizer)
            args.data_content[prefix] = content_digest(prefix)
            if name == "all":
                _refuse_empty_splits(args, summary)


def _check_validation(args: MegatronArgs, blends: Mapping[str, Blend]) -> None:
    """UserError where a validation would find no data: Megatron fails in the first one, after all the steps before it."""
    if not args.eval_iters:
        return
    _check_whole(args, blends)
    if "all" in blends:
        split = args.split or _MEGATRONS_SPLIT
        missing = _bounds(split)[SPLITS.index("valid")] is None
        what, remedy = f"--split {split} leaves none", "give another --split"
    else:
        missing = "valid" not in blends
        what, remedy = "no --valid-data-path is given", "give it"
    if missing:
        raise UserError(f"validation (--eval-iters {args.eval_iters}) has no data, {what}: {remedy}, or --eval-iters 0")


def _check_whole(args: MegatronArgs, blends: Mapping[str, Blend]) -> None:
    """UserError where ``--full-validation`` asks for all of a set that is drawn by weights."""
    blend = blends.get("valid") or blends.get("all")
    if args.full_validation and blend is not None and blend.weights is not None:
        raise UserError(
            f"--full-validation: the validation data ({blend.source}) is drawn by weights, so it has no end; list "
            "--valid-data-path without weights, or remove the flag, for --eval-iters batches"
        )


def _bounds(split: str) -> list[tuple[float, float] | None]:
    return convert_split_vector_to_split_matrix(parse_and_normalize_split(split))


def _refuse_empty_splits(args: MegatronArgs, summary: DatasetSummary) -> None:
    """Megatron would never end building a split without documents."""
    split = args.split or _MEGATRONS_SPLIT
    for name, bound in zip(SPLITS, _bounds(split), strict=True):
        needed = name == "train" or args.eval_iters
        if bound is None or not needed:
            continue
        first, last = (round(part * float(summary.documents)) for part in bound)
        if first == last:
            raise UserError(
                f"--split {split} leaves no document of {summary.prefix} ({summary.documents} documents) for {name}; "
                "give another --split, or datasets of their own with --train-data-path and --valid-data-path"
            )
