"""Whether the optimizer's state in a checkpoint can be brought to a run's layout."""

import argparse
from pathlib import Path
from typing import Any

from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE, DistributedOptimizer

from megatron_cod.args import MegatronArgs
from megatron_cod.errors import UserError

# What a distributed optimizer's buckets are cut by. Short name -> argument.
_BUCKET_LAYOUT = {
    "TP": "tensor_model_parallel_size",
    "PP": "pipeline_model_parallel_size",
    "EP": "expert_model_parallel_size",
    "VPP": "virtual_pipeline_model_parallel_size",
}


def check_optimizer_layout(
    checkpoint: Path, saved: argparse.Namespace, content: dict[str, Any], args: MegatronArgs
) -> None:
    """UserError when the optimizer state cannot be brought to this run's layout; another DP size always can.

    content: the checkpoint's content metadata. A distributed optimizer saved without
    ``--dist-ckpt-optim-fully-reshardable``, which our runs have by default, keeps its buckets as they lay in memory.
    """
    if args.no_load_optim or args.finetune:
        return
    if getattr(saved, "no_save_optim", False):
        raise UserError(
            f"checkpoint {checkpoint} was saved with --no-save-optim: there is no optimizer state to resume from; give "
            "--no-load-optim, or --finetune to begin at step 0"
        )
    optimizer = getattr(saved, "optimizer", args.optimizer)
    if optimizer != args.optimizer:
        raise UserError(
            f"checkpoint {checkpoint} was saved with --optimizer {optimizer}, whose state --optimizer {args.optimizer} "
            "cannot resume from: give that, or --no-load-optim"
        )
    theirs, ours = bool(getattr(saved, "use_distributed_optimizer", False)), bool(args.use_distributed_optimizer)
    if theirs != ours:
        raise UserError(
            f"checkpoint {checkpoint} was saved {'with' if theirs else 'without'} --use-distributed-optimizer, and its "
            f"optimizer state only loads so: {'give' if theirs else 'omit'} that flag, or give --no-load-optim"
        )
    _check_experts(checkpoint, saved, args)
    kind = content.get("distrib_optim_sharding_type")
    if not ours or kind is None or kind in DistributedOptimizer.checkpoint_fully_reshardable_formats:
        return
    what = f"checkpoint {checkpoint} holds an optimizer state that cannot be resharded ({kind})"
    layouts = [{short: getattr(a, name, None) or 1 for short, name in _BUCKET_LAYOUT.items()} for a in (saved, args)]
    if layouts[0] != layouts[1]:
        was, now = (" x ".join(f"{short} {size}" for short, size in layout.items()) for layout in layouts)
        raise UserError(
            f"{what}, saved at {was}, this run is {now}: load it at the saved layout, or give --no-load-optim"
        )
    if not HAVE_APEX_OR_TE:  # Megatron writes into its parameters in place, which autograd refuses
        raise UserError(f"{what}, and with torch's AdamW not be loaded at all: give --no-load-optim")


def _check_experts(checkpoint: Path, saved: argparse.Namespace, args: MegatronArgs) -> None:
    """UserError where experts go from one rank to several, or back: over several they have an optimizer of their own."""
    theirs, ours = (getattr(one, "expert_model_parallel_size", None) or 1 for one in (saved, args))
    if args.num_experts and (theirs > 1) != (ours > 1):
        raise UserError(
            f"checkpoint {checkpoint} was saved at --expert-model-parallel-size {theirs}, and its optimizer state "
            f"cannot be brought to {ours}: give {theirs if theirs == 1 else 'more than 1'}, or --no-load-optim"
        )
