"""The task of ``pretrain.py``: tokens from ``.bin/.idx``, next-token loss on all of them."""

from typing import Any

from megatron_cod.training import environment  # noqa: F401

# isort: split
from megatron_cod.data.check import check_prefix
from megatron_cod.training.batches import datasets_provider, forward_step
from megatron_cod.training.task import Task

_INTRODUCTION = """\
Pretrain a GPT/Llama model with LayerNorm Scaling on Megatron-Core.

  torchrun --nproc-per-node N -m megatron_cod.training.pretrain --recipe recipes/debug.yaml [any Megatron flag]

A recipe is a YAML file of Megatron argument names (ours included); the command line wins over it. Without a GPU the same
command trains on CPU processes over gloo, no flag needed. Data, made by tools/preprocess_data.py: --train-data-path PREFIX
--valid-data-path PREFIX, or --data-path PREFIX, with the --tokenizer-type and --tokenizer-model of it.
"""


def data_prefixes(args: Any) -> list[str]:
    """Every dataset prefix the arguments name; weights of a blend are numbers and drop out."""
    words = [
        word
        for group in (args.data_path, args.train_data_path, args.valid_data_path, args.test_data_path)
        for word in group or []
    ]
    return [word for word in words if not word.replace(".", "", 1).replace("e-", "", 1).isdigit()]


def check_data(args: Any, vocabulary: int | None) -> None:
    """ValueError for datasets that are missing, damaged, or of a larger vocabulary."""
    if args.mock_data:
        return
    prefixes = data_prefixes(args)
    if not prefixes and not (args.data_args_path or args.per_split_data_args_path):
        raise ValueError("no data: give --data-path PREFIX (made by tools/preprocess_data.py), or --mock-data")
    for prefix in prefixes:
        check_prefix(prefix, vocab_size=vocabulary)


TASK = Task(
    program="pretrain",
    introduction=_INTRODUCTION,
    datasets_provider=datasets_provider,
    forward_step=forward_step,
    check_data=check_data,
)
