"""Load a checkpoint as the training entry does, in one worker of a layout, and say what the model computes."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout

ONE, TP2, PP2 = Layout(), Layout(tp=2), Layout(pp=2)
TP2_SP = Layout(tp=2, flags=("--sequence-parallel",))


def _worker(_rank: int, folder: str, layout: Layout, tokens: Tensor, more: list[str], recipe: str) -> dict[str, Any]:
    import megatron.training.training as loop
    from megatron.core import mpu
    from megatron.core.enums import ModelType
    from megatron.core.num_microbatches_calculator import get_num_microbatches
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.argument_utils import pretrain_cfg_container_from_args

    from megatron_cod.training.before_megatron import satisfy_make
    from megatron_cod.training.data.batches import forward_step
    from megatron_cod.training.start.loading import MODEL_ALONE
    from megatron_cod.training.start.prepare import prepare

    batch, length = tokens.shape
    flags = [
        *("--recipe", recipe, "--load", folder, "--mock-data", "--eval-iters", "0", "--train-iters", "1"),
        *("--lr", "1e-4", "--micro-batch-size", "1", "--global-batch-size", str(batch)),
        *("--seq-length", str(length), "--tokenizer-type", "NullTokenizer", "--no-load-optim"),
        *layout.all_flags(),
        *more,
    ]
    start = prepare(flags, MODEL_ALONE, layout.world)
    args, config = start.args, start.model_config
    satisfy_make()
    loop.initialize_megatron()
    args.curr_iteration = 10**6
    model, *_ = loop.setup_model_and_optimizer(
        ModelType.encoder_or_decoder,
        checkpointing_context={},
        cfg_container=pretrain_cfg_container_from_args(args, config),
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
    )
    logits: list[Tensor] = []
    for chunk in model:
        chunk.eval()
        for name, module in chunk.named_modules():
            if name.endswith("output_layer"):
                module.register_forward_hook(lambda _m, _i, out: logits.append(out[0].detach().transpose(0, 1).clone()))

    def rows() -> Any:
        for row in tokens:
            yield {
                "tokens": row[None],
                "labels": row[None],
                "loss_mask": torch.ones(1, length),
                "position_ids": torch.arange(length)[None],
            }

    with torch.no_grad():
        get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=[rows() for _ in model] if layout.vp > 1 else rows(),
            model=model,
            num_microbatches=get_num_microbatches(),
            seq_length=length,
            micro_batch_size=1,
            forward_only=True,
        )
    result: dict[str, Any] = {"tp_rank": mpu.get_tensor_model_parallel_rank()}
    if mpu.is_pipeline_last_stage(ignore_virtual=True):
        # Those of the head, which Megatron multiplies behind it.
        multiplier = config.transformer.mup_output_mult if config.transformer.use_mup else 1.0
        result["logits"] = torch.cat(logits).float() * multiplier
    return result


def megatron_logits(
    folder: Path, layout: Layout, tokens: Tensor, *more: str, recipe: Path | None = None, timeout: float = 240.0
) -> Tensor:
    """Logits [b, s, v] of the checkpoint in ``folder``, loaded at a layout with the recipe that lies beside it."""
    found = run_ranks(
        layout.world,
        _worker,
        str(folder),
        layout,
        tokens,
        list(more),
        str(recipe or folder / "recipe.yaml"),
        timeout=timeout,
    )
    held = {result["tp_rank"]: result["logits"] for result in found if "logits" in result}
    return torch.cat([held[rank] for rank in range(layout.tp)], dim=-1)
