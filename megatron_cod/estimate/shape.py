"""Sizes that the arguments give under other names."""

from typing import Any

import torch

from megatron_cod.args import MegatronArgs


def head_dim(args: MegatronArgs) -> int:
    """Channels of one attention head."""
    return args.kv_channels or args.hidden_size // args.num_attention_heads


def query_groups(args: MegatronArgs) -> int:
    """Key-value heads."""
    return args.num_query_groups if args.group_query_attention else args.num_attention_heads


def microbatches(args: MegatronArgs, batch: int | None = None) -> int:
    """Micro-batches of one data-parallel replica in a step of ``batch`` samples; ``--global-batch-size`` by default."""
    return (batch or args.global_batch_size) // (args.micro_batch_size * args.data_parallel_size)


def virtual_group(args: MegatronArgs) -> int:
    """Contiguous micro-batches a virtual stage takes in turn."""
    return args.microbatch_group_size_per_vp_stage or args.pipeline_model_parallel_size


def element_size(dtype: Any) -> int:
    """Bytes of an element of a torch dtype, or of one that Megatron's flags name."""
    return dtype.itemsize if isinstance(dtype, torch.dtype) else {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}[dtype]
