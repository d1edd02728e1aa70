"""Conditions under which Megatron-Core 0.19.2 reads a flag, where its help does not say so: more rows of ``void.py``."""

from __future__ import annotations

from typing import Any

from megatron_cod.training.flags.void_row import DEPRECATED, GONE, Void, never


def has_graphs(args: Any) -> bool:
    """Whether any flag asks for CUDA graphs. args: the plain parse."""
    return args.cuda_graph_impl != "none" or args.enable_cuda_graph or args.external_cuda_graph


def _recomputes(args: Any) -> bool:
    return bool(args.recompute_granularity or args.recompute_activations)


def _has_virtual_stages(args: Any) -> bool:
    asked = args.num_virtual_stages_per_pipeline_rank or args.num_layers_per_virtual_pipeline_stage
    return bool(asked or args.pipeline_model_parallel_layout or "|" in (args.hybrid_layer_pattern or ""))


def _over_transformer_engine(args: Any) -> bool:
    return args.transformer_impl != "local"


def _unfused(args: Any) -> bool:
    """Whether attention is Megatron's own, which has a softmax of its own."""
    return args.transformer_impl == "local" and args.attention_backend.name in ("unfused", "local")


def _chooses_kernel(args: Any) -> bool:
    return _over_transformer_engine(args) or args.attention_backend.name not in ("flash", "fused")


_VIRTUAL = "without virtual stages, such as --num-virtual-stages-per-pipeline-rank"
_PIPELINE = "at --pipeline-model-parallel-size 1"
_TORCH = "over the layers of --backend torch and apex"

_MODEL = (
    Void(
        "add_qkv_bias", lambda a: not a.add_bias_linear, "without --disable-bias-linear: all linear layers have a bias"
    ),
    Void("apply_residual_connection_post_layernorm openai_gelu", never, GONE, True),
    Void("onnx_safe vocab_extra_ids", never, GONE),
    Void("use_flash_attn", never, f"{DEPRECATED}; --attention-backend chooses"),
    Void("deprecated_use_mcore_models", never, f"{DEPRECATED}: all models are of Megatron-Core"),
    Void(
        "heterogeneous_layers_config_encoded_json",
        lambda a: a.heterogeneous_layers_config_path,
        "without --heterogeneous-layers-config-path",
        True,
    ),
    Void("kv_channels", lambda a: not a.multi_latent_attention or a.use_mup, "under --multi-latent-attention"),
    Void(
        "attention_backend",
        _chooses_kernel,
        "over the torch backend's attention, whose kernel torch chooses; unfused acts there",
    ),
    Void(
        "attention_softmax_in_fp32 apply_query_key_layer_scaling masked_softmax_fusion",
        _unfused,
        "without --backend torch --attention-backend unfused: fused attention has a softmax of its own",
    ),
    Void(
        "use_te_activation_func use_transformer_engine_op_fuser symmetric_ar_type te_precision_config_file "
        "fused_residual_rmsnorm log_max_attention_logit batch_invariant_mode tp_comm_overlap",
        _over_transformer_engine,
        _TORCH,
    ),
    Void("no_persist_layer_norm", lambda a: not _over_transformer_engine(a), "over Transformer Engine's norms"),
    Void(
        "use_grouped_gemm_for_dense_mlp",
        lambda a: a.use_transformer_engine_op_fuser,
        "without --use-transformer-engine-op-fuser",
    ),
    Void(
        "use_grouped_gemm_for_shared_expert",
        lambda a: a.num_experts and a.moe_shared_expert_intermediate_size and _over_transformer_engine(a),
        "without --moe-shared-expert-intermediate-size, over Transformer Engine",
    ),
    Void(
        "use_fused_weighted_squared_relu",
        lambda a: a.squared_relu and a.num_experts,
        "without --squared-relu and --num-experts",
    ),
    Void("bias_swiglu_fusion", lambda a: a.swiglu, "without --swiglu"),
    Void(
        "bias_gelu_fusion",
        lambda a: a.add_bias_linear and not a.swiglu,
        "under --swiglu or --disable-bias-linear",
    ),
    Void(
        "apply_rope_fusion",
        lambda a: a.position_embedding_type == "rope" or a.use_rotary_position_embeddings,
        "without --position-embedding-type rope",
    ),
    Void("cross_entropy_fusion_impl", lambda a: a.cross_entropy_loss_fusion, "without --cross-entropy-loss-fusion"),
    Void("disable_bf16_reduced_precision_matmul", lambda a: a.bf16, "without --bf16"),
    Void("accumulate_allreduce_grads_in_fp32", lambda a: a.bf16 or a.fp16, "without --bf16 or --fp16"),
    Void("recompute_method recompute_num_layers", _recomputes, "without --recompute-granularity full"),
    Void(
        "cpu_offloading_retain_pinned_cpu_buffers",
        lambda a: a.cpu_offloading_num_layers,
        "without --cpu-offloading-num-layers",
    ),
)

_LAYOUT = (
    Void("sharp_enabled_group", lambda a: a.use_sharp, "without --use-sharp", True),
    Void("max_seqlen_per_dp_cp_rank", lambda a: a.hybrid_context_parallel, "without --hybrid-context-parallel"),
    Void(
        "hierarchical_context_parallel_sizes",
        lambda a: "a2a+p2p" in a.cp_comm_type,
        "without --cp-comm-type a2a+p2p",
    ),
    Void("microbatch_group_size_per_vp_stage overlap_p2p_comm", _has_virtual_stages, _VIRTUAL),
    Void(
        "align_param_gather",
        lambda a: _has_virtual_stages(a) and a.overlap_param_gather,
        "without virtual stages and --overlap-param-gather",
        training=True,
    ),
    Void("align_grad_reduce", lambda a: a.overlap_grad_reduce, "without --overlap-grad-reduce", training=True),
    Void(
        "ddp_bucket_size ddp_num_buckets",
        lambda a: a.overlap_grad_reduce,
        "without --overlap-grad-reduce: all gradients are one bucket then",
        training=True,
    ),
    Void("ddp_bucket_size", lambda a: a.ddp_num_buckets is None, "beside --ddp-num-buckets", training=True),
    Void(
        "ddp_* overlap_grad_reduce check_for_large_grads",
        lambda a: not a.use_torch_fsdp2,
        "under --use-torch-fsdp2, which reduces gradients by itself",
        training=True,
    ),
    Void(
        "ddp_pad_buckets_for_high_nccl_busbw",
        lambda a: a.use_distributed_optimizer,
        "without --use-distributed-optimizer",
        training=True,
    ),
    Void(
        "high_priority_a2a_comm_stream",
        lambda a: a.overlap_moe_expert_parallel_comm,
        "without --overlap-moe-expert-parallel-comm",
    ),
    Void(
        "pipeline_model_parallel_comm_backend use_ring_exchange_p2p decoder_first_pipeline_num_layers "
        "decoder_last_pipeline_num_layers",
        lambda a: a.pipeline_model_parallel_size > 1,
        _PIPELINE,
    ),
    Void(
        "clone_scatter_output_in_embedding",
        lambda a: a.sequence_parallel and a.tensor_model_parallel_size > 1,
        "without --sequence-parallel",
    ),
    Void("tp_comm_bootstrap_backend", lambda a: a.tp_comm_overlap, "without --tp-comm-overlap"),
    Void(
        "create_all_gather_group gradient_reduce_div_fusion",
        lambda a: a.use_megatron_fsdp,
        "without --use-megatron-fsdp",
    ),
    Void("disable_symmetric_registration", lambda a: a.nccl_ub, "without --use-nccl-ub"),
    Void("local_rank", never, "here: the launcher's LOCAL_RANK counts"),
)

_TRAINING = (
    Void(
        "main_grads_dtype main_params_dtype exp_avg_dtype exp_avg_sq_dtype",
        lambda a: a.use_precision_aware_optimizer,
        "without --use-precision-aware-optimizer",
        True,
        True,
    ),
    Void(
        "use_layer_wise_param_layout",
        lambda a: a.use_distributed_optimizer and a.optimizer not in ("adam", "sgd"),
        "without --use-distributed-optimizer and an optimizer such as muon",
        training=True,
    ),
    Void(
        "reuse_grad_buf_for_mxfp8_param_ag",
        lambda a: a.fp8 and a.fp8_recipe == "mxfp8",
        "without --fp8-format and --fp8-recipe mxfp8",
        training=True,
    ),
    Void(
        "apply_wd_to_qk_layernorm no_weight_decay_cond_type",
        lambda a: a.qk_layernorm,
        "without --qk-layernorm",
        training=True,
    ),
    Void(
        "decrease_batch_size_if_needed",
        never,
        "here: batch sizes that do not divide over the replicas are refused",
        training=True,
    ),
    Void("manual_gc_interval manual_gc_eval", lambda a: a.manual_gc, "without --manual-gc", training=True),
    Void("exit_signal", lambda a: a.exit_signal_handler, "without --exit-signal-handler", training=True),
    Void("exit_signal_handler_for_dataloader", never, GONE, training=True),
    Void("check_for_spiky_loss", never, "here: --loss-spike-factor does it", training=True),
    Void("eval_interval", lambda a: a.eval_iters, "under --eval-iters 0", training=True, typed=True),
    Void("nvtx_ranges", lambda a: a.profile, "without --profile", training=True),
    Void(
        "log_loss_scale_to_tensorboard",
        lambda a: a.tensorboard_dir or a.save,
        "without --tensorboard-dir, or --save",
        training=True,
    ),
    Void("barrier_with_L1_time", lambda a: a.timing_log_level, "at --timing-log-level 0", training=True),
    Void(
        "one_logger_* app_tag_run_*",
        lambda a: a.enable_one_logger,
        "here: NVIDIA's internal service is off (--no-one-logger)",
        training=True,
    ),
    Void("disable_msc_deprecated", lambda a: a.enable_msc, "without --enable-msc"),
)

CONDITIONS = (*_MODEL, *_LAYOUT, *_TRAINING)
