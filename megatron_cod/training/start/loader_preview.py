"""Preview of the training loader: the samples of a step, from the datasets and sampler of training."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

from megatron_cod.training import before_megatron  # noqa: F401

# isort: split
import numpy as np
from megatron.core import num_microbatches_calculator as microbatches
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.training.datasets.data_samplers import MegatronPretrainingRandomSampler, MegatronPretrainingSampler
from megatron.training.training import get_train_valid_test_num_samples

from megatron_cod.errors import UserError
from megatron_cod.training.data.batches import datasets_provider
from megatron_cod.training.pretraining import TASK
from megatron_cod.training.start.checks import Need
from megatron_cod.training.start.prepare import prepare

_PREVIEW = replace(TASK, trains=False)
"""A preview of the loader neither saves nor schedules anything."""


@dataclass(frozen=True)
class Row:
    """One row of a step: which sample of the training set, out of which dataset, in which micro-batch (from 0), and its
    tokens, labels and loss mask [sequence]."""

    sample: int
    source: str
    micro_batch: int
    tokens: np.ndarray
    labels: np.ndarray
    loss_mask: np.ndarray


class Feed:
    """The training set of a launch. ``args`` are Megatron's after its validation."""

    def __init__(self, command_line: Sequence[str], world_size: int | None) -> None:
        """command_line: what follows ``megatron_cod.training.pretrain``. world_size: processes of the launch, by default as
        many as one data-parallel replica takes.

        Raises UserError for what the launch would refuse.
        """
        with redirect_stdout(io.StringIO()):  # Megatron prints hundreds of lines
            self.args = _parse(list(command_line), world_size)
            self.counts = get_train_valid_test_num_samples()
            self._dataset = datasets_provider(self.counts)[0]
        if self._dataset is None:
            raise UserError("there is no training data: give --train-data-path or --data-path")

    @property
    def replicas(self) -> int:
        return self.args.data_parallel_size

    def sources(self) -> list[str]:
        """The prefixes of the datasets that make the training set."""
        parts = self._dataset.datasets if isinstance(self._dataset, BlendedDataset) else [self._dataset]
        return [str(part.dataset_path) for part in parts]

    def asked_shares(self) -> list[float]:
        """The share of each source that its weight, or its length, asks for."""
        weights: Sequence[float] = self._dataset.weights if isinstance(self._dataset, BlendedDataset) else [1]
        total = sum(weights)
        return [weight / total for weight in weights]

    def rows(self, step: int, replica: int) -> Iterator[Row]:
        """The rows of step ``step`` (from 1) on data-parallel rank ``replica``; UserError when there is no such step."""
        if not 0 <= replica < self.replicas:
            raise UserError(
                f"--dp-rank {replica} does not exist: the launch has {self.replicas} data-parallel replicas"
            )
        if step < 1 or (self.args.train_iters and step > self.args.train_iters):
            raise UserError(f"--step {step} does not exist: the run has steps 1 to {self.args.train_iters}")
        consumed = self._consumed_before(step)
        samples = iter(self._sampler(consumed, replica))
        for micro_batch in range(microbatches.get_num_microbatches()):
            for sample in next(samples):
                found = self._dataset[sample]
                arrays = [np.asarray(found[name]) for name in ("tokens", "labels", "loss_mask")]
                yield Row(sample, self._source_of(sample), micro_batch, *arrays)

    def shares(self, steps: int) -> list[float]:
        """The share of each source in the rows of steps 1 to ``steps``, over all replicas."""
        until = min(self._consumed_before(steps + 1), len(self._dataset))
        samples: Sequence[int] | np.ndarray = np.arange(until)
        if self.args.dataloader_type == "cyclic":
            batch = self.args.micro_batch_size * self.replicas
            order = [iter(self._sampler(0, replica)) for replica in range(self.replicas)]
            samples = [sample for _ in range(until // batch) for each in order for sample in next(each)]
        names = self.sources()
        if isinstance(self._dataset, BlendedDataset):
            counts = np.bincount(self._dataset.dataset_index[samples], minlength=len(names))
        else:
            counts = np.array([len(samples)])
        return (counts / max(int(counts.sum()), 1)).tolist()

    def _consumed_before(self, step: int) -> int:
        """Samples that all replicas have taken before a step; sets Megatron's batch size to that of the step."""
        consumed = 0
        for _ in range(step - 1):
            microbatches.update_num_microbatches(consumed, consistency_check=False)
            consumed += microbatches.get_current_global_batch_size()
        microbatches.update_num_microbatches(consumed, consistency_check=False)
        return consumed

    def _sampler(self, consumed: int, replica: int) -> Any:
        """As ``build_pretraining_data_loader`` makes it, which asks the process groups for the replica."""
        kinds = {"single": MegatronPretrainingSampler, "cyclic": MegatronPretrainingRandomSampler}
        kind = kinds.get(self.args.dataloader_type)
        if kind is None:
            raise UserError(f"--dataloader-type {self.args.dataloader_type} feeds rows that only the run itself knows")
        more: dict[str, Any] = {}
        if kind is MegatronPretrainingRandomSampler:
            more = {"dataset": self._dataset, "data_sharding": self.args.data_sharding}
        return kind(
            total_samples=len(self._dataset),
            consumed_samples=consumed,
            micro_batch_size=self.args.micro_batch_size,
            data_parallel_rank=replica,
            data_parallel_size=self.replicas,
            **more,
        )

    def _source_of(self, sample: int) -> str:
        if not isinstance(self._dataset, BlendedDataset):
            return str(self._dataset.dataset_path)
        return str(self._dataset.datasets[self._dataset.dataset_index[sample]].dataset_path)


def _parse(command_line: list[str], world_size: int | None) -> Any:
    """Megatron's arguments as rank 0 of the launch has them. No process group is made."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    return prepare(command_line, _PREVIEW, world_size, frozenset({Need.DATA})).args
