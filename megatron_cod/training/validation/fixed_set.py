"""Validation and test sets that give the same samples at every evaluation.

Megatron's loop takes the next batches at each evaluation, from as many epochs as it needs, so two evaluations of the same
weights differ. Here a set is one epoch; an evaluation reads all of it, or its first rows where it is larger than
``--eval-iters`` batches. The order does not depend on ``--seed``: runs with different seeds are evaluated on the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megatron_cod.args import MegatronArgs
from megatron_cod.data.datasets.blends import Blend, blends_of
from megatron_cod.data.datasets.manifest import read_record

_ENOUGH = 1 << 20
"""Evaluations that a set provides samples for."""
SPLITS = ("validation", "test")


class FixedSet(torch.utils.data.Dataset):
    """The first ``samples`` of a dataset, filled up to ``rows``, over and over. Rows beyond ``samples`` count nothing."""

    def __init__(self, inner: Any, samples: int, rows: int, length: int) -> None:
        self._inner, self._samples, self._rows, self._length = inner, samples, rows, length
        self.split = getattr(inner, "split", None) or inner.index_split  # Megatron's loader asks for it

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        place = index % self._rows
        if place < self._samples:
            return self._inner[place]
        sample = dict(self._inner[0])
        sample["loss_mask"] = torch.zeros_like(sample["loss_mask"])
        return sample


@dataclass(frozen=True)
class Extent:
    """How much of a set an evaluation reads."""

    epoch: int
    """Samples of the whole set; 0 where there is no set."""
    samples: int
    """Different ones that an evaluation reads."""
    batches: int

    @property
    def is_whole(self) -> bool:
        """Whether an evaluation reads all of the set."""
        return self.samples == self.epoch


def extent_of(epoch: int, batch: int, eval_iters: int, whole: bool) -> Extent:
    """What an evaluation reads of ``epoch`` samples: all if ``whole`` or if ``eval_iters`` batches cover them."""
    all_batches = -(-epoch // batch)
    batches = all_batches if whole else min(all_batches, eval_iters)
    return Extent(epoch, min(epoch, batches * batch), batches)


def is_weighted(args: MegatronArgs, split: str) -> bool:
    """Whether the samples of a split (valid or test) are drawn by weights: then the set has no epoch of its own."""
    blend = _blend(args, split)
    return args.mock_data or (blend is not None and blend.weights is not None)


def _blend(args: MegatronArgs, split: str) -> Blend | None:
    blends = blends_of(args)
    return blends.get(split) or blends.get("all")


def bytes_per_token(args: MegatronArgs, split: str) -> float | None:
    """UTF-8 bytes of text per token of an evaluation set; None where its records do not have them.

    The records beside the datasets count both. A part of a dataset (``--split``) has no record of its own.
    """
    blend = None if args.mock_data else blends_of(args).get(split)
    if blend is None or (blend.weights is not None and len(blend.prefixes) > 1):
        return None
    records = [read_record(prefix) for prefix in blend.prefixes]
    known = [one for one in records if one is not None and one.text_bytes and one.tokens]
    if len(known) < len(records):
        return None
    return sum(one.text_bytes for one in known) / sum(one.tokens for one in known)


Provider = Callable[..., Any]


class FixedSets:
    """Replaces a provider's validation and test sets by fixed ones, and sets ``--eval-iters`` to what each takes."""

    def __init__(self, args: MegatronArgs, whole: bool, log: Callable[[str], None]) -> None:
        """whole: ``--full-validation``. log: prints a line on rank 0."""
        self._args, self._whole, self._log = args, whole, log
        assert args.eval_global_batch_size is not None  # Megatron has validated the arguments
        self._asked, self._batch = args.eval_iters, args.eval_global_batch_size
        self.extents: tuple[Extent, Extent] | None = None
        """Of the validation and the test set, once they are built."""

    def around(self, provider: Provider) -> Provider:
        """Megatron's provider, with the sets fixed. Collective over all ranks, as the provider is."""

        def provide(counts: Sequence[int], vp_stage: int | None = None) -> Any:
            if not self._asked:
                return provider(counts, vp_stage=vp_stage)
            train, *sets = provider([counts[0], *self._sizes()], vp_stage=vp_stage)
            if self.extents is None:
                self._measure(sets)
            return train, *(self._fixed(one, place) for place, one in enumerate(sets))

        provide.is_distributed = True  # type: ignore[attr-defined]  # as the provider's own mark
        return provide

    def _sizes(self) -> list[int | None]:
        """Samples to build of each set; None: one epoch."""
        drawn = self._asked * self._batch
        return [drawn if is_weighted(self._args, split) else None for split in ("valid", "test")]

    def _measure(self, sets: Sequence[Any]) -> None:
        """Rank 0 builds every set of the first stage; the other ranks may build none, and learn the lengths here."""
        lengths = torch.tensor(
            [0 if one is None else len(one) for one in sets], dtype=torch.int64, device=torch.cuda.current_device()
        )
        torch.distributed.broadcast(lengths, 0)
        found = [extent_of(length, self._batch, self._asked, self._whole) for length in lengths.tolist()]
        self.extents = (found[0], found[1])
        for name, extent in zip(SPLITS, self.extents, strict=True):
            if extent.epoch:
                self._log(self._line(name, extent))
        self.use("validation")

    def _line(self, name: str, extent: Extent) -> str:
        tokens = f"{extent.samples * self._args.seq_length:,} tokens"
        if is_weighted(self._args, "valid" if name == "validation" else name):
            drawn = f"the same {extent.samples:,} samples, drawn by weights ({tokens})"
            return f"{name}: {drawn}, at every evaluation (--eval-iters {self._asked})"
        if extent.is_whole:
            return f"{name}: all {extent.epoch:,} samples of the set ({tokens}) at every evaluation"
        return (
            f"{name}: the same {extent.samples:,} of {extent.epoch:,} samples ({tokens}) at every evaluation "
            f"(--eval-iters {self._asked}; --full-validation takes all)"
        )

    def use(self, name: str) -> None:
        """Have Megatron's next evaluations take as many batches as a set has."""
        if self.extents is not None:
            self._args.eval_iters = self.extents[SPLITS.index(name)].batches

    def _fixed(self, inner: Any, place: int) -> FixedSet | None:
        assert self.extents is not None
        extent, args = self.extents[place], self._args
        if inner is None or not extent.samples:
            return None
        rows = extent.batches * self._batch
        if args.dataloader_type == "cyclic":  # draws the order of each epoch again: one epoch is one evaluation
            args.consumed_valid_samples -= args.consumed_valid_samples % rows
            return FixedSet(inner, extent.samples, rows, rows)
        return FixedSet(inner, extent.samples, rows, args.consumed_valid_samples + rows * _ENOUGH)


def fixed_sets(args: MegatronArgs, log: Callable[[str], None]) -> FixedSets:
    """The fixed sets of a run. Takes ``--full-validation`` over from Megatron, whose own fails in Megatron-Core 0.19.2."""
    whole, args.full_validation = args.full_validation, False
    return FixedSets(args, whole, log)
