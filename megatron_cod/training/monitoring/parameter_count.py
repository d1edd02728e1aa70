"""How many parameters the whole model has, counted once over all parallel ranks."""

from collections.abc import Sequence

import torch
from megatron.core import parallel_state


def count_parameters(model: Sequence[torch.nn.Module]) -> int:
    """Parameters of one replica of the model. Collective over the model-parallel group.

    A parameter split over TP counts with every shard, a replicated one on the first TP rank only; the copy of a tied
    embedding on the last pipeline stage does not count again.
    """
    first_tp_rank = parallel_state.get_tensor_model_parallel_rank() == 0
    mine = 0
    for chunk in model:
        for parameter in chunk.parameters():
            copy_of_embedding = getattr(parameter, "shared", False) and not parallel_state.is_pipeline_first_stage(
                ignore_virtual=True
            )
            split = getattr(parameter, "tensor_model_parallel", False)
            if (split or first_tp_rank) and not copy_of_embedding:
                mine += parameter.numel()
    total = torch.full((1,), mine, dtype=torch.int64, device=torch.cuda.current_device())  # no copy from the host
    torch.distributed.all_reduce(total, group=parallel_state.get_model_parallel_group())
    return int(total)
