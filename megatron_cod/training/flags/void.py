"""Flags without effect unless another flag is given, or if it is: refused if the run would differ silently, else reported.

A flag counts as given where its value differs from the parser's default. ``tests/training/flags/test_void.py`` tries every
row, and holds every flag of Megatron's to a row here or to a list of those that act by themselves.
"""

from __future__ import annotations

from argparse import Action, BooleanOptionalAction
from collections.abc import Callable, Iterable

from megatron_cod.args import MegatronArgs
from megatron_cod.errors import UserError
from megatron_cod.training.flags.conditions import CONDITIONS, has_graphs
from megatron_cod.training.flags.expert_conditions import EXPERT_CONDITIONS
from megatron_cod.training.flags.file_conditions import FILE_CONDITIONS
from megatron_cod.training.flags.given import Given
from megatron_cod.training.flags.log_conditions import LOG_CONDITIONS
from megatron_cod.training.flags.ranges import flag_of
from megatron_cod.training.flags.void_row import Void, never


def _rotates(args: MegatronArgs) -> bool:
    return args.multi_latent_attention or args.position_embedding_type in ("rope", "yarn", "mrope")


def _decays(args: MegatronArgs) -> bool:
    return args.lr_decay_style != "constant"


_NO_MASK = (
    "under --no-create-attention-mask-in-dataloader: documents would attend to each other; where a recipe says so, "
    "give --unset no-create-attention-mask-in-dataloader"
)
_OTHER_PROGRAM = "here: it is of another program of Megatron's"

VOID = (
    *CONDITIONS,
    *EXPERT_CONDITIONS,
    *FILE_CONDITIONS,
    *LOG_CONDITIONS,
    # Masks, packing and data
    Void("reset_attention_mask", lambda a: a.create_attention_mask_in_dataloader, _NO_MASK, True, True),
    Void(
        "reset_attention_mask",
        lambda a: a.transformer_impl == "local",
        "over Transformer Engine, whose causal attention reads no mask: documents would attend to each other; give "
        "--backend torch",
        True,
        True,
    ),
    Void(
        "dataloader_inter_document_masking",
        never,
        "here: documents would attend to each other; give --reset-attention-mask, with a mask made by the loader",
        True,
        True,
    ),
    Void(
        "reset_position_ids",
        lambda a: a.position_embedding_type == "learned_absolute",
        "without --position-embedding-type learned_absolute: rotations know distances alone",
        training=True,
    ),
    Void("fim_*", never, "here: samples are cut as they stand, without filling in the middle", True),
    Void("sft", never, "here: megatron_cod.training.sft fine-tunes", True, True),
    Void("sft_tokenizer_prompt_format", never, "here: --chat-template sets the format"),
    Void(
        "dataloader_fast_cache_load dataloader_defer_npy_index_mmap per_dataset_sequences_path object_storage_cache_path "
        "mid_level_dataset_surplus allow_ambiguous_pad_tokens",
        never,
        "here: the datasets of this package are built without it",
    ),
    Void("split", lambda a: a.data_path or a.data_args_path or a.mock_data, "without --data-path or --data-args-path"),
    Void("sample_rate mask_prob short_seq_prob bert_* encoder_seq_length decoder_seq_length", never, _OTHER_PROGRAM),
    # Precision
    Void(
        "fp8_* keep_fp8_transpose_cache",
        lambda a: a.fp8,
        "without --fp8-format",
    ),
    Void("fp4_*", lambda a: a.fp4, "without --fp4-format"),
    Void("first_last_layers_bf16", lambda a: a.fp8 or a.fp4, "without --fp8-format or --fp4-format"),
    Void("num_layers_at_*", lambda a: a.first_last_layers_bf16, "without --first-last-layers-bf16"),
    Void(
        "loss_scale initial_loss_scale min_loss_scale loss_scale_window hysteresis", lambda a: a.fp16, "without --fp16"
    ),
    Void("grad_reduce_in_bf16", lambda a: a.bf16, "without --bf16"),
    # The model
    Void(
        "q_lora_rank kv_lora_rank qk_head_dim qk_pos_emb_head_dim v_head_dim rotary_scaling_factor mscale mscale_all_dim "
        "cache_mla_latents mla_down_proj_fusion",
        lambda a: a.multi_latent_attention,
        "without --multi-latent-attention",
    ),
    Void("mtp_*", lambda a: a.mtp_num_layers, "without --mtp-num-layers", but="mtp_num_layers"),
    Void("mup_*", lambda a: a.use_mup, "without --use-mup"),
    Void(
        "rotary_base rotary_percent rotary_interleaved rotary_seq_len_interpolation_factor use_rope_scaling no_rope_freq",
        _rotates,
        "without --position-embedding-type rope",
    ),
    Void("rope_scaling_factor", lambda a: a.use_rope_scaling, "without --use-rope-scaling"),
    Void("rope_type", lambda a: a.multi_latent_attention, "without --multi-latent-attention"),
    Void(
        "yarn_*", lambda a: "yarn" in (a.position_embedding_type, a.rope_type), "without --position-embedding-type yarn"
    ),
    Void("mrope_section", lambda a: a.position_embedding_type == "mrope", "without --position-embedding-type mrope"),
    Void(
        "relative_attention_*",
        lambda a: a.position_embedding_type == "relative",
        "without --position-embedding-type relative",
    ),
    Void("num_query_groups", lambda a: a.group_query_attention, "without --group-query-attention", True),
    Void("window_attn_skip_freq", lambda a: a.window_size, "without --window-size"),
    Void("qk_clip_*", lambda a: a.qk_clip, "without --qk-clip"),
    Void(
        "glu_linear_offset activation_func_clamp_value",
        lambda a: a.swiglu or a.quick_geglu,
        "without --swiglu or --quick-geglu",
    ),
    Void("dsa_*", lambda a: a.experimental_attention_variant == "dsa", "without --experimental-attention-variant dsa"),
    Void(
        "linear_*",
        lambda a: a.experimental_attention_variant == "gated_delta_net",
        "without --experimental-attention-variant gated_delta_net",
    ),
    Void(
        "mamba_* use_mamba_mem_eff_path",
        lambda a: a.hybrid_layer_pattern,
        "without --hybrid-layer-pattern",
    ),
    Void("kitchen_attention_backend", lambda a: a.use_kitchen_attention, "without --use-kitchen-attention"),
    Void("flash_attention_version", lambda a: a.transformer_impl != "local", "over the torch backend's attention"),
    # Optimizer and schedule
    Void("adam_*", lambda a: a.optimizer not in ("sgd", "lion"), "under --optimizer sgd or lion", training=True),
    Void("sgd_momentum", lambda a: a.optimizer == "sgd", "without --optimizer sgd", training=True),
    Void("muon_*", lambda a: "muon" in a.optimizer, "without --optimizer muon", training=True),
    Void(
        "lion_*",
        lambda a: a.optimizer == "lion" or a.muon_scalar_optimizer == "lion",
        "without --optimizer lion",
        training=True,
    ),
    Void(
        "optimizer_offload_fraction use_torch_optimizer_for_cpu_offload overlap_cpu_optimizer_d2h_h2d pin_cpu_*",
        lambda a: a.optimizer_cpu_offload,
        "without --optimizer-cpu-offload",
        training=True,
    ),
    Void("lr_wsd_decay_style", lambda a: a.lr_decay_style == "WSD", "without --lr-decay-style WSD", training=True),
    Void("min_lr lr_decay_*", _decays, "under --lr-decay-style constant", training=True, but="lr_decay_style"),
    Void(
        "lr_warmup_init",
        lambda a: a.lr_warmup_fraction or a.lr_warmup_iters or a.lr_warmup_samples,
        "without a warm-up, such as --lr-warmup-iters",
        training=True,
    ),
    Void("decoupled_min_lr", lambda a: a.decoupled_lr is not None, "without --decoupled-lr", training=True),
    # Validation
    Void(
        "eval_global_batch_size eval_micro_batch_size start_eval_at_iter validation_set_names full_validation",
        lambda a: a.eval_iters,
        "under --eval-iters 0",
        training=True,
    ),
    # Checkpoints
    Void(
        "save_interval save_retain_interval keep_last_checkpoints no_save_optim no_save_rng dist_ckpt_workers",
        lambda a: a.save,
        "without --save: nothing is kept",
        training=True,
    ),
    Void(
        "no_load_optim no_load_rng finetune ckpt_step exit_on_missing_checkpoint override_opt_param_scheduler "
        "use_checkpoint_opt_param_scheduler override_scheme_check override_model_check verify_checkpoint "
        "ckpt_fully_parallel_load load_main_params_from_ckpt rewind_skip",
        lambda a: a.load or a.pretrained_checkpoint,
        "without --load",
        training=True,
    ),
    Void("data_sharding", lambda a: a.dataloader_type == "cyclic", "without --dataloader-type cyclic", training=True),
    # The layout
    Void("sequence_parallel", lambda a: a.tensor_model_parallel_size > 1, "at --tensor-model-parallel-size 1"),
    Void("cp_comm_type", lambda a: a.context_parallel_size > 1, "at --context-parallel-size 1"),
    Void(
        "tp_comm_bulk_* tp_comm_overlap_* tp_comm_split_*",
        lambda a: a.tp_comm_overlap,
        "without --tp-comm-overlap",
    ),
    Void(
        "account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split",
        lambda a: a.pipeline_model_parallel_size > 1,
        "at --pipeline-model-parallel-size 1",
    ),
    Void("wgrad_deferral_limit", lambda a: a.defer_embedding_wgrad_compute, "without --defer-embedding-wgrad-compute"),
    Void(
        "torch_fsdp2_reshard_after_forward",
        lambda a: a.use_torch_fsdp2,
        "without --use-torch-fsdp2",
    ),
    Void(
        "megatron_fsdp_* fsdp_double_buffer outer_dp_sharding_strategy data_parallel_sharding_strategy "
        "suggested_communication_unit_size enable_full_sharding_in_hsdp fsdp_db_use_persist_buf_on_alloc_fail",
        lambda a: a.use_megatron_fsdp,
        "without --use-megatron-fsdp",
    ),
    # Graphs and memory
    Void(
        "cuda_graph_modules cuda_graph_scope_deprecated cuda_graph_warmup_steps",
        has_graphs,
        "without --cuda-graph-impl",
    ),
    Void(
        "recompute_modules",
        lambda a: a.recompute_granularity == "selective" or a.recompute_activations,
        "without --recompute-granularity selective",
    ),
    Void(
        "offload_modules min_offloaded_tensor_size delay_offload_until_cuda_graph delta_offload_bytes_across_pp_ranks "
        "activation_offload_fraction fine_grained_offloading_max_inflight_offloads",
        lambda a: a.fine_grained_activation_offloading,
        "without --fine-grained-activation-offloading",
    ),
    # Megatron's other programs
    Void("rl_* grpo_* langrl_env_config refit_method", lambda a: a.perform_rl_step, _OTHER_PROGRAM),
    Void(
        "inference_* max_tokens_to_oom num_speculative_tokens enable_chunked_prefill decode_only_cuda_graphs "
        "use_legacy_static_engine flash_decode nccl_all_reduce_for_prefill mlp_chunks_for_prefill output_bert_embeddings "
        "offset_sampling_seed_by_dp_rank moe_pad_experts_for_cuda_graph_inference",
        never,
        _OTHER_PROGRAM,
    ),
    Void(
        "vision_* dino_* img_* num_channels num_classes patch_dim classes_fraction data_per_class_fraction iter_per_epoch "
        "ict_* biencoder_* query_* retriever_* evidence_* indexer_* block_data_path embedding_path titles_data_path "
        "use_one_sent_docs head_lr_mult mask_factor mask_type swin_backbone_type",
        never,
        _OTHER_PROGRAM,
    ),
)


def _not_default(args: MegatronArgs, actions: Iterable[Action]) -> dict[str, str]:
    """Argument -> flag, of those that are not at their defaults."""
    found: dict[str, str] = {}
    for action in actions:
        value = getattr(args, action.dest, action.default)
        sets = action.nargs != 0 or isinstance(action, BooleanOptionalAction) or action.const == value
        if action.option_strings and value != action.default and sets:
            found.setdefault(action.dest, flag_of(action))
    return found


def check_void(
    args: MegatronArgs, actions: Iterable[Action], trains: bool, given: Callable[[], Given] | None = None
) -> list[str]:
    """A line for the log for each flag that does nothing; UserError where the run would differ from the requested one.

    args: the plain parse. actions: of its parser. given: who gave what; None: all that is not a default was typed.
    """
    lines, changed = [], _not_default(args, actions)
    for row in VOID:
        if (row.training and not trains) or row.acts(args):
            continue
        names = [name for name in changed if row.has(name)]
        flags = [changed[name] for name in names if given is None or given().counts(name, row)]
        if flags:
            line = f"{', '.join(flags)} {'does' if len(flags) == 1 else 'do'} nothing {row.why}"
            if row.refused:
                raise UserError(line)
            lines.append(f"WARNING: {line}")
    return lines
