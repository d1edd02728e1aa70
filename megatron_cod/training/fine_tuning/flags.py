"""The flags of ``sft.py``, and the options that exclude each other."""

import argparse
from typing import Any, Protocol

from megatron_cod.args import MegatronArgs
from megatron_cod.common.lists import refuse_set
from megatron_cod.common.numbers import at_least, share
from megatron_cod.data.chat.layouts import LAYOUTS
from megatron_cod.data.chat.samples import TOO_LONG
from megatron_cod.data.chat.templates import BUILT_IN
from megatron_cod.errors import UserError
from megatron_cod.training.flags.token_counts import KINDS

INTRODUCTION = """\
Supervised fine-tuning of a checkpoint of any norm scheme: all weights, loss on the answers only (docs/sft.md).

  megatron-cod sft --recipe sft_debug \\
      --load runs/first --save runs/sft --sft-data-path chats.jsonl [any Megatron flag]

The first start takes the weights of --load; once --save holds a checkpoint, the same command resumes from there.
--chat-template names a Jinja file or one of: {templates} (default: the tokenizer's own; plain for
SentencePiece and bytes).
""".format(templates=", ".join(BUILT_IN))

_PRETRAINING_DATA: tuple[str, ...] = (
    *("data_path", "train_data_path", "valid_data_path", "test_data_path", "data_args_path"),
    *("per_split_data_args_path", "mock_data"),
)


class FineTuningArgs(MegatronArgs, Protocol):
    """With the flags of ``sft.py``."""

    sft_data_path: list[str]
    sft_valid_data_path: list[str] | None
    sft_valid_share: float | None
    sft_layout: str
    sft_too_long: str
    sft_skip_bad_lines: bool
    sft_packing: bool
    sft_data_fingerprint: str | None
    train_epochs: int | None


def add_arguments(group: Any) -> None:
    """The flags that only fine-tuning has."""
    group.add_argument(
        "--sft-data-path",
        nargs="+",
        metavar="FILE",
        help="conversations as JSON lines, one JSON list, Parquet or Arrow; files and globs",
    )
    group.add_argument("--sft-valid-data-path", nargs="+", metavar="FILE", help="the same, to validate on")
    group.add_argument(
        "--sft-valid-share", type=share, metavar="X", help="hold this share of the conversations out to validate on"
    )
    group.add_argument(
        "--sft-layout",
        choices=("auto", *LAYOUTS),
        default="auto",
        help="messages: {role, content}; prompt: prompt and completion; instruction: instruction, input and output; "
        "conversations: {from, value} (default: by each line's keys)",
    )
    group.add_argument(
        "--sft-too-long",
        choices=TOO_LONG,
        default="error",
        help="what to do with conversations longer than --seq-length (default: error)",
    )
    group.add_argument("--sft-skip-bad-lines", action="store_true", help="skip invalid lines, and count them")
    group.add_argument(
        "--no-sft-packing",
        dest="sft_packing",
        action="store_false",
        help="one conversation a row, padded (default: as many as fit, none of which sees another)",
    )
    group.add_argument(
        "--train-epochs",
        type=at_least(1),
        metavar="E",
        help="pass over the conversations E times; wins over --train-iters",
    )
    # Not the user's: every rank's arguments, and so every checkpoint, record what was trained on.
    group.add_argument("--sft-data-fingerprint", help=argparse.SUPPRESS)


def check_flags(raw: FineTuningArgs) -> None:
    """UserError, naming the flags, for what fine-tuning cannot do. raw: the plain parse of the command line."""
    for name in _PRETRAINING_DATA:
        if getattr(raw, name):
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is pretraining's; give --sft-data-path (and --unset {flag} if a recipe has it)")
    if not raw.sft_data_path:
        raise UserError("no data: give --sft-data-path FILE")
    if raw.sft_valid_data_path and raw.sft_valid_share:
        raise UserError("--sft-valid-data-path and --sft-valid-share both name the validation data; give one of them")
    if not (raw.load or raw.pretrained_checkpoint):
        raise UserError("nothing to fine-tune: give --load CHECKPOINT, of pretraining or megatron-cod convert import")
    if not raw.seq_length:
        raise UserError("--seq-length is missing: how many tokens a row has")
    if not raw.global_batch_size:
        raise UserError("--global-batch-size is missing: how many rows a step has")
    if not (raw.train_epochs or raw.train_iters or raw.train_samples):
        raise UserError("how long to train is missing: give --train-epochs, or --train-iters")
    refused = {
        "--sft (Megatron's own; its validation loss is a mean of means)": raw.sft,
        "--full-validation (all of it is the default here)": raw.full_validation,
        "--multiple-validation-sets": raw.multiple_validation_sets,
        "--residual-warmup-steps (it would start again, on weights that are past it)": raw.residual_warmup_steps,
        "--rampup-batch-size": raw.rampup_batch_size,
        "--step-batch-size-schedule": raw.step_batch_size_schedule,
        "lengths in tokens (rows hold padding; --train-epochs, and --lr-warmup-iters and its like)": any(
            getattr(raw, f"{kind}_tokens") for kind in KINDS
        ),
        "an --eval-micro-batch-size of its own": raw.eval_micro_batch_size not in (None, raw.micro_batch_size),
        "--dataloader-type (rows are shuffled every epoch)": raw.dataloader_type not in (None, "single"),
    }
    refuse_set(refused, "fine-tuning does not support")
    if raw.train_epochs and raw.train_samples:
        raise UserError("--train-epochs and --train-samples both set how long to train; give one of them")
    if raw.sft_packing:
        _check_packing(raw)


def _check_packing(raw: FineTuningArgs) -> None:
    refused = {
        "--context-parallel-size > 1": raw.context_parallel_size > 1,
        "--mtp-num-layers": raw.mtp_num_layers,
        "--cuda-graph-impl": raw.cuda_graph_impl not in (None, "none"),
        "--attention-backend unfused without Transformer Engine": (
            raw.transformer_impl == "local" and getattr(raw.attention_backend, "name", "") == "unfused"
        ),
        "--pipeline-model-parallel-size > 1 with --micro-batch-size > 1 (a longer row holds as many)": (
            raw.pipeline_model_parallel_size > 1 and (raw.micro_batch_size or 1) > 1
        ),
    }
    refuse_set(refused, "packing does not support", "change that, or give --no-sft-packing")
