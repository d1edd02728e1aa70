"""The task of ``pretrain.py``: tokens from ``.bin/.idx``, next-token loss on all of them."""

from megatron_cod.training import before_megatron  # noqa: F401

# isort: split
from megatron_cod.training.data.batches import datasets_provider, forward_step
from megatron_cod.training.data.dataset_checks import check_data
from megatron_cod.training.data.default_data import use_sample
from megatron_cod.training.task import Task

_INTRODUCTION = """\
Pretrain a GPT/Llama model with LayerNorm Scaling on Megatron-Core.

  megatron-cod train --recipe debug [any Megatron flag]
  torchrun --nproc-per-node N -m megatron_cod.training.pretrain --recipe debug [any Megatron flag]

A recipe is a YAML file of Megatron argument names (ours included), or a name of `megatron-cod recipes list`; the command
line wins over it. Without a GPU the same command trains on CPU processes over gloo, no flag needed. Data, made by
`megatron-cod preprocess`: --train-data-path PREFIX --valid-data-path PREFIX, or --data-path PREFIX, with the
--tokenizer-type and --tokenizer-model of it.
"""

TASK = Task(
    program="pretrain",
    introduction=_INTRODUCTION,
    datasets_provider=datasets_provider,
    forward_step=forward_step,
    check_data=check_data,
    data_by_default=use_sample,
)
