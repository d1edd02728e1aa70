"""Operations over lists of tensors in few kernels: what ``torch_only`` puts in for Megatron's loops.

The first two keep the arguments of ``amp_C``'s multi-tensor functions. None waits for the device.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

Lists = Sequence[Sequence[Tensor]]


def l2_norm(_chunk: int, _noop: Tensor, tensors: Lists, _per_tensor: bool, *_: Any) -> tuple[Tensor, None]:
    """The norm of all tensors as one vector, [1] in fp32, on the device. Megatron's asks for each tensor's on the host."""
    device = torch.cuda.current_device()  # parameters of an offloaded optimizer may be on the host
    norms = [norm.to(device, torch.float32) for norm in torch._foreach_norm(list(tensors[0]))]
    return torch.linalg.vector_norm(torch.stack(norms)).view(1), None


def scale(_chunk: int, _noop: Tensor, tensors: Lists, factor: float, *_: Any) -> None:
    """tensors: sources and destinations, which may be the same; destination = source * factor."""
    sources, destinations = map(list, tensors)
    if all(source is destination for source, destination in zip(sources, destinations, strict=True)):
        torch._foreach_mul_(sources, factor)
    else:
        _copy_all(destinations, torch._foreach_mul(sources, factor))


def copy(this: Sequence[Tensor], that: Sequence[Tensor], overflow_buf: Tensor | None = None) -> None:
    """Every tensor of ``this`` into its counterpart, whatever their dtypes."""
    if overflow_buf is not None:
        overflow_buf.fill_(0)
    if this:
        _copy_all(list(that), list(this))


def _copy_all(destinations: list[Tensor], sources: Sequence[Tensor]) -> None:
    if any(isinstance(tensor, DTensor) for tensor in destinations):
        # FSDP2's parameters: torch has no rule for their sharding in _foreach_copy_.
        for destination, source in zip(destinations, sources, strict=True):
            destination.copy_(source)
    else:
        torch._foreach_copy_(destinations, sources)


def with_one_copy(original: Callable[..., Any]) -> Callable[..., Any]:
    """``DistributedOptimizer._copy_main_params_to_model_params`` with one copy of all shards, where it only copies."""

    @functools.wraps(original)
    def wrapper(self: Any) -> None:
        other = (
            self.ddp_config.use_megatron_fsdp or self.ddp_config.fp8_param_gather or self.ddp_config.fp4_param_gather
        )
        if self.is_stub_optimizer or other or self.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8:
            original(self)
            return
        copy(*_shards(self))

    return wrapper


def _shards(optimizer: Any) -> tuple[list[Tensor], list[Tensor]]:
    """This rank's parts of the main parameters, and of the buffers that the model's are views of."""
    main = [*optimizer.shard_fp32_from_float16_groups, *optimizer.shard_fp32_groups]
    of_model = [*optimizer.model_float16_groups, *optimizer.model_fp32_groups]
    of_main = [shard for group in main for shard in group]
    return of_main, [_place(optimizer, parameter) for group in of_model for parameter in group]


def _place(optimizer: Any, parameter: Tensor) -> Tensor:
    place = optimizer._get_model_param_range_map(parameter)["gbuf_world_in_bucket"]
    buffer, _, bucket = optimizer.model_param_gbuf_map[parameter]
    whole: Tensor = optimizer.buffers[buffer].buckets[bucket].param_data
    return whole.view(-1)[place.start : place.end]
