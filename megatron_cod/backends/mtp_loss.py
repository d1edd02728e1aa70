"""The loss of multi-token prediction under context parallelism, as one process has it.

Megatron divides each rank's sum by the rank's own count of predicted tokens, which differs: what lies behind the end of
the sequence is missing on the rank that has the end. Here each rank's losses are weighed by its share of the count.
"""

from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.multi_token_prediction import roll_tensor
from torch import Tensor


def _total(count: Tensor, group: Any) -> Tensor:
    total = count.clone()
    torch.distributed.all_reduce(total, group=group)
    return total.clamp(min=1)


def depth_weights(loss_mask: Tensor, depths: int, group: Any, per_token: bool) -> list[Tensor]:
    """What the losses of each depth are multiplied by. loss_mask: [b, s/C], this rank's. Collective over ``group``.

    per_token: Megatron then adds up over ranks, and multiplies a rank's losses by its count before the first shift. The
    gradients are right; the loss it logs of a depth then still weighs ranks alike, where they have unequal counts.
    """
    mask, before = loss_mask, loss_mask.sum()
    base = _total(before, group) / before.clamp(min=1) if per_token else torch.distributed.get_world_size(group)
    weights = []
    for _ in range(depths):
        mask, count = roll_tensor(mask, shifts=-1, dims=-1, cp_group=group)
        weights.append(base * count.clamp(min=1) / _total(count, group))
    return weights


class WeighedMTP(GPTModel):
    """GPTModel whose losses, by prediction depth and then of the next token, are weighted means over the ranks."""

    _weights: tuple[Tensor, ...] = ()

    def _postprocess(self, *args: Any, loss_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        group, config = self.pg_collection.cp, self.config
        if self.post_process and loss_mask is not None and group.size() > 1:
            found = depth_weights(loss_mask, config.mtp_num_layers, group, config.calculate_per_token_loss)
            self._weights = tuple(found)
        return super()._postprocess(*args, loss_mask=loss_mask, **kwargs)

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Losses [b, s] of the tokens."""
        losses = super().compute_language_model_loss(labels, logits)
        if not self._weights:
            return losses
        weight, *rest = self._weights
        self._weights = tuple(rest)
        return losses * weight
