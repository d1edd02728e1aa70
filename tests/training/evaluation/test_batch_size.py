"""The micro-batch that evaluation chooses: by memory, whole windows, at least one."""

from types import SimpleNamespace

import pytest

from megatron_cod.training.evaluation.batch_size import micro_batch_size


def chosen(**fields):
    small = {
        "bf16": False,
        "fp16": False,
        "padded_vocab_size": 264,
        "vocab_size": None,
        "num_experts": None,
        "hidden_size": 96,
        "ffn_hidden_size": 256,
        "moe_ffn_hidden_size": None,
        "moe_router_topk": 2,
        "moe_expert_capacity_factor": None,
        "tensor_model_parallel_size": 1,
        "context_parallel_size": 1,
        "seq_length": 128,
    }
    return micro_batch_size(SimpleNamespace(**(small | fields)), 3)


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({}, 16),  # 2048 tokens
        ({"seq_length": 100}, 16),  # a power of two
        ({"seq_length": 4096}, 1),
        ({"seq_length": 4096, "context_parallel_size": 4}, 2),
        # 1 GiB over (4 + 8) bytes of 250,000 logits: 357 tokens
        ({"padded_vocab_size": 250_000}, 2),
        ({"padded_vocab_size": 250_000, "tensor_model_parallel_size": 4}, 8),
        ({"padded_vocab_size": None, "vocab_size": 250_000}, 2),
        ({"moe_expert_capacity_factor": 1.0}, 3),  # that of the run: its numbers depend on it
    ],
)
def test_is_chosen_by_memory(fields, windows):
    assert chosen(**fields) == windows
