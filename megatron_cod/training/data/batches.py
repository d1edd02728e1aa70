"""Data for the loop: datasets from the arguments, micro-batches for the ranks, the forward step and the loss."""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig, MockGPTDataset
from megatron.core.transformer.multi_token_prediction import mtp_on_this_rank
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout
from megatron.training import get_args, get_timers, get_tokenizer, print_rank_0
from megatron.training.utils import get_blend_and_blend_per_split, is_first_or_last_pipeline_stage
from torch import Tensor

from megatron_cod.args import MegatronArgs
from megatron_cod.backends.packed_samples import PackedSamples
from megatron_cod.schemes.residual import set_training_step
from megatron_cod.training.data.context_parallel import balanced, cut_to_rank
from megatron_cod.training.data.sample_indices import ContentDataset, remove_unfinished_blends

Batch = dict[str, Tensor | None]
_KEYS = ("tokens", "labels", "loss_mask", "position_ids")
EVALUATION_SEED = 1234
"""Of the order of documents in validation and test sets, for any ``--seed``."""
ON_HOST = "position_ids on the host"
"""The entry of a batch of packed rows that holds its positions in host memory, on ranks that read data."""


def dataset_config(args: MegatronArgs, seed: int | None = None) -> GPTDatasetConfig:
    """Megatron's GPT dataset configuration for the parsed arguments. seed: of the order of documents."""
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    return GPTDatasetConfig(
        random_seed=args.seed if seed is None else seed,
        drop_last_partial_validation_sequence=False,
        sequence_length=args.seq_length,
        blend=blend,
        blend_per_split=blend_per_split,
        split=args.split,
        num_dataset_builder_threads=args.num_dataset_builder_threads,
        path_to_cache=args.data_cache_path,
        mmap_bin_files=args.mmap_bin_files,
        tokenizer=get_tokenizer(),
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=args.reset_attention_mask,
        eod_mask_loss=args.eod_mask_loss,
        create_attention_mask=args.create_attention_mask_in_dataloader,
    )


_layout = lru_cache(PipelineParallelLayerLayout)


def _reads_data(args: MegatronArgs, vp_stage: int | None) -> bool:
    """Whether this stage needs tokens: the first, the last, and any that holds multi-token-prediction layers."""
    if is_first_or_last_pipeline_stage(vp_stage):
        return True
    written, pipeline = args.pipeline_model_parallel_layout, args.pipeline_model_parallel_size
    return mtp_on_this_rank(written and _layout(written, pipeline), args.mtp_num_layers, False, vp_stage)


def datasets_provider(sample_counts: list[int], vp_stage: int | None = None) -> Any:
    """Train, validation and test datasets of so many samples; None: one epoch.

    The order of the validation and test documents does not depend on ``--seed``.
    """
    args = get_args()
    kind = MockGPTDataset if args.mock_data else ContentDataset

    def is_built_here() -> bool:
        return _reads_data(args, vp_stage) and mpu.get_tensor_model_parallel_rank() == 0

    print_rank_0("building datasets ...")
    remove_unfinished_blends(args.data_cache_path)
    training = _only(dataset_config(args), [True, False, False])
    evaluation = _only(dataset_config(args, EVALUATION_SEED), [False, True, True])
    train = BlendedMegatronDatasetBuilder(kind, [sample_counts[0], 0, 0], is_built_here, training).build()[0]
    _, *sets = BlendedMegatronDatasetBuilder(kind, [0, *sample_counts[1:]], is_built_here, evaluation).build()
    return train, *sets


def _only(config: GPTDatasetConfig, wanted: list[bool]) -> GPTDatasetConfig:
    """The configuration without the splits (train, valid, test) that are not wanted."""
    if config.blend_per_split is not None:
        pairs = zip(config.blend_per_split, wanted, strict=True)
        config.blend_per_split = [one if keep else None for one, keep in pairs]
    if config.split_matrix is not None:
        config.split_matrix = [one if keep else None for one, keep in zip(config.split_matrix, wanted, strict=True)]
    return config


# Every rank of a data-parallel replica builds or reads its own index: Megatron asks for this mark.
datasets_provider.is_distributed = True  # type: ignore[attr-defined]


def get_batch(
    data_iterator: Iterator[dict[str, Tensor]] | None, vp_stage: int | None = None, everywhere: bool = False
) -> Batch:
    """One micro-batch [b, s] for this rank: read on the first TP rank, broadcast over TP, cut to this CP rank.

    Most stages in the middle of the pipeline need no data: every entry is None there, unless ``everywhere``; then the
    positions are kept on the host too, where they were read.
    """
    keys = (*_KEYS, "attention_mask")
    args = get_args()
    if not everywhere and not _reads_data(args, vp_stage):
        return dict.fromkeys(keys)
    shape = (args.micro_batch_size, args.seq_length)
    device = torch.cuda.current_device()
    batch: Batch = dict.fromkeys(keys)
    names = keys if args.create_attention_mask_in_dataloader else _KEYS
    data: dict[str, Tensor] | None = None
    if mpu.get_tensor_model_parallel_rank() == 0:
        assert data_iterator is not None
        data = next(data_iterator)
        for name in names:
            batch[name] = data[name].cuda(non_blocking=True)
    else:
        for name in _KEYS:
            dtype = torch.float32 if name == "loss_mask" else torch.int64
            batch[name] = torch.empty(shape, dtype=dtype, device=device)
        if "attention_mask" in names:
            mask_shape = (shape[0], 1, shape[1], shape[1])
            batch["attention_mask"] = torch.empty(mask_shape, dtype=torch.bool, device=device)
    if mpu.get_tensor_model_parallel_world_size() > 1:
        group, source = mpu.get_tensor_model_parallel_group(), mpu.get_tensor_model_parallel_src_rank()
        for name in names:
            torch.distributed.broadcast(batch[name], source, group=group)
    batch = cut_to_rank(batch)
    if everywhere and data is not None:
        batch[ON_HOST] = data["position_ids"]
    return batch


def loss_func(loss_mask: Tensor, output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Sum of the token losses [b, s] over unmasked tokens, their number, and what is reported.

    loss_mask, output: [b, s]. Reported losses are means over all tokens of a step; the gradient is Megatron's (a mean
    per micro-batch, or over tokens with --calculate-per-token-loss), the same thing when no token is masked. Under context
    parallelism a micro-batch is all ranks' parts of it.
    """
    mask = loss_mask.view(-1).float()
    loss = torch.sum(output.view(-1).float() * mask)
    tokens = mask.sum().clone().detach().to(torch.int)
    reported = torch.cat([loss.clone().detach().view(1), tokens.view(1).float()])
    if not get_args().calculate_per_token_loss:
        loss = balanced(loss, tokens)
    return loss, tokens, {"lm loss": reported}


def packed_batch(batch: Batch) -> tuple[Batch, PackedSamples]:
    """A batch of rows [b, s] as one row [1, b * s], and where in it samples begin: wherever positions start again."""
    flat: Batch = {name: None if one is None else one.reshape(1, -1) for name, one in batch.items()}
    positions, on_host = flat["position_ids"], flat.pop(ON_HOST, None)
    assert positions is not None
    return flat, PackedSamples(positions.flatten(), None if on_host is None else on_host.flatten())


def forward_step(
    data_iterator: Iterator[dict[str, Tensor]] | None, model: torch.nn.Module, packed: bool = False
) -> tuple[Tensor, Callable[..., Any]]:
    """Megatron's ``forward_step_func``: the model's output for one micro-batch, and how to turn it into a loss.

    packed: rows hold several samples that must not see each other; then every stage reads the batch, to know them apart.
    """
    timers = get_timers()
    timers("batch-generator", log_level=2).start()
    inner: Any = model
    while not hasattr(inner, "vp_stage") and hasattr(inner, "module"):
        inner = inner.module
    args = get_args()
    if args.residual_warmup_steps and args.cuda_graph_impl == "none":  # under graphs residual_warmup.py does
        set_training_step([inner], getattr(args, "curr_iteration", args.iteration))
    batch = get_batch(data_iterator, getattr(inner, "vp_stage", None), everywhere=packed)
    batch, samples = packed_batch(batch) if packed else (batch, None)
    timers("batch-generator").stop()
    output = model(
        batch["tokens"],
        batch["position_ids"],
        batch["attention_mask"],
        labels=batch["labels"],
        loss_mask=batch["loss_mask"],
        packed_seq_params=samples,
    )
    return output, partial(loss_func, batch["loss_mask"])
