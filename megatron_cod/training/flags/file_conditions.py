"""Conditions under which Megatron-Core 0.19.2 reads a flag of checkpoints or of the tokenizer: more rows of ``void.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_cod.training.flags.void_row import DEPRECATED, GONE, Void, never

_WORDS = ("GPT2BPETokenizer", "BertWordPieceLowerCase", "BertWordPieceCase")
_PIECES = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")
_HUB = ("HuggingFaceTokenizer", *_WORDS)


def _reads_or_writes(args: Any) -> bool:
    return bool(args.save or args.load or args.pretrained_checkpoint)


def _pads(args: Any) -> bool:
    return args.padded_vocab_size is None and args.pad_vocab_size


def _of_tokenizer(*types: str) -> Callable[[Any], bool]:
    """A condition: one of these tokenizers, or none named yet."""
    return lambda args: not args.tokenizer_type or args.tokenizer_type in types


_CHECKPOINTS = (
    Void(
        "async_save ckpt_assume_constant_structure ckpt_fully_parallel_save ckpt_fully_parallel_save_process_group "
        "distrib_optim_fully_reshardable_mem_efficient log_progress non_persistent_ckpt_type",
        lambda a: a.save,
        "without --save: nothing is kept",
        training=True,
    ),
    Void(
        "ckpt_fully_parallel_save_process_group",
        lambda a: a.ckpt_fully_parallel_save,
        "under --no-ckpt-fully-parallel-save",
        training=True,
    ),
    Void("use_persistent_ckpt_worker", lambda a: a.async_save, "without --async-save", training=True),
    Void(
        "distrib_optim_fully_reshardable_mem_efficient",
        lambda a: a.use_distributed_optimizer and a.dist_ckpt_optim_fully_reshardable,
        "without --use-distributed-optimizer",
        training=True,
    ),
    Void(
        "ckpt_format",
        lambda a: _reads_or_writes(a) or a.use_torch_fsdp2 or a.use_megatron_fsdp,
        "without --save or --load",
        training=True,
    ),
    Void("verify_integrity dist_ckpt_strictness", _reads_or_writes, "without --save or --load", training=True),
    Void(
        "auto_detect_ckpt_format ckpt_fully_parallel_load_exchange_algo ckpt_fully_parallel_load_process_group "
        "ckpt_load_validate_sharding_integrity override_ckpt_iteration strict_fsdp_dtensor_load stream_ckpt_dequant",
        lambda a: a.load or a.pretrained_checkpoint,
        "without --load",
    ),
    Void(
        "ckpt_fully_parallel_load_exchange_algo ckpt_fully_parallel_load_process_group",
        lambda a: a.ckpt_fully_parallel_load,
        "without --ckpt-fully-parallel-load",
    ),
    Void("strict_fsdp_dtensor_load", lambda a: a.use_megatron_fsdp, "without --use-megatron-fsdp"),
    Void("stream_ckpt_dequant", lambda a: a.fp8 or a.fp4, "without --fp8-format or --fp4-format"),
    Void(
        "use_mp_args_from_checkpoint_args use_tokenizer_model_from_checkpoint_args",
        lambda a: a.use_checkpoint_args,
        "without --use-checkpoint-args",
    ),
    Void(
        "ckpt_convert_save ckpt_convert_update_legacy_dist_opt_format",
        lambda a: a.ckpt_convert_format,
        "without --ckpt-convert-format",
    ),
    Void(
        "non_persistent_*",
        lambda a: a.non_persistent_ckpt_type,
        "without --non-persistent-ckpt-type",
        training=True,
        but="non_persistent_ckpt_type",
    ),
    Void("ckpt_fully_parallel_save_deprecated", never, "by itself: it is the default"),
    Void("use_dist_ckpt_deprecated dist_ckpt_format_deprecated", never, f"{DEPRECATED}; --ckpt-format chooses"),
    Void("dist_ckpt_save_pre_mcore_014", never, GONE),
)

_TOKENIZERS = (
    Void("merge_file vocab_file", _of_tokenizer(*_HUB), "with this --tokenizer-type"),
    Void("tokenizer_hf_* trust_remote_code", _of_tokenizer(*_HUB), "without --tokenizer-type HuggingFaceTokenizer"),
    Void("tiktoken_*", _of_tokenizer("TikTokenizer"), "without --tokenizer-type TikTokenizer"),
    Void("tokenizer_sentencepiece_*", _of_tokenizer(*_PIECES), "without --tokenizer-type SentencePieceTokenizer"),
    Void("null_tokenizer_*", _of_tokenizer("NullTokenizer"), "without --tokenizer-type NullTokenizer"),
    Void(
        "metadata_path special_tokens tokenizer_model",
        lambda a: a.tokenizer_type not in ("NullTokenizer", "ByteLevelTokenizer"),
        "with this --tokenizer-type, which reads no file",
    ),
    Void("make_vocab_size_divisible_by", _pads, "beside --padded-vocab-size", typed=True),
    Void("pad_vocab_size", lambda a: a.padded_vocab_size is None, "beside --padded-vocab-size"),
)

FILE_CONDITIONS = (*_CHECKPOINTS, *_TOKENIZERS)
