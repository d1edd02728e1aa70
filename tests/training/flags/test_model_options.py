"""What evaluation keeps of a run: each option that a model is built from is kept, or named here with why it is not."""

from dataclasses import fields

from megatron.core.transformer.transformer_config import MLATransformerConfig
from megatron.training.models import GPTModelConfig

from megatron_cod.training.flags.model_options import MODEL, TOKENIZER, keys_beside_the_model, matches, scheme_options
from megatron_cod.training.flags.parser import build_parser

NOT_THE_FUNCTION = {
    "layout and communication": """
        *_parallel_size account_for_* pipeline_model_parallel_* num_layers_in_* sequence_parallel tp_comm_* cp_comm_type
        tp_only_amax_red overlap_* hierarchical_context_parallel_sizes microbatch_group_size_per_vp_stage batch_p2p_*
        deallocate_pipeline_outputs high_priority_a2a_comm_stream symmetric_ar_type use_ring_exchange_p2p max_seqlen_per_*
        variable_seq_lengths scatter_embedding_sequence_parallel parallel_output ep_overlap_* *_weight_shards
        *gtp_weight_remat_size nccl_all_reduce_for_prefill defer_embedding_wgrad_compute wgrad_deferral_limit""",
    "kernels and memory": """
        *_fusion *_fusion_impl cross_entropy_loss_fusion fused_* persist_layer_norm memory_efficient_layer_norm
        transformer_impl use_te_* use_transformer_engine_op_fuser use_grouped_gemm_* use_fused_* use_kitchen
        use_mamba_mem_eff_path mamba_training_* disable_parameter_transpose_cache flash_* cuda_graph_* enable_cuda_graph
        external_cuda_graph recompute_* distribute_saved_activations num_microbatches_with_* cpu_offloading*
        _cpu_offloading_context fine_grained_* *offload* delta_offload_* use_cpu_initialization perform_initialization
        init_model_with_meta_device batch_invariant_mode deterministic_mode clone_scatter_output_in_embedding
        mlp_chunks_* cache_mla_latents moe_permute_fusion_into_hybridep use_arbitrary_attention_mask
        moe_layer_recompute moe_shared_expert_overlap moe_single_grouped_* moe_deepep_* moe_hybridep_* moe_ncclep_*
        moe_enable_deepep moe_flex_dispatcher_num_sms moe_paged_stash* moe_expert_rank_capacity_factor
        activation_func_fp8_input_store fp8_wgrad fp8_param fp4_param use_inference_optimized_layers""",
    "training alone": """
        calculate_per_token_loss delay_wgrad_compute moe_z_loss_coeff moe_input_jitter_eps moe_router_bias_update_rate
        moe_router_quantile_balancing_ema qk_clip* log_max_attention_logit *_loss_scale_func *grad_scale_func
        *_sync_func finalize_model_grads_func moe_per_layer_logging config_logger_dir timers barrier_with_L1_time
        embedding_init_method init_method output_layer_init_method pre_wrap_hooks post_wrap_hooks
        extra_checkpoint_metadata hetereogenous_dist_checkpoint restore_modelopt_state autocast_dtype enable_autocast""",
    "tests, inference": """
        moe_router_force_* moe_router_fusion moe_router_topk_limited_devices moe_enable_routing_replay moe_token_dropping
        moe_pad_experts_* inference_* test_mode""",
    "derived from options that are kept": """
        activation_func gated_linear_unit num_moe_experts params_dtype pipeline_dtype beta_fast beta_slow
        original_max_position_embeddings share_embeddings_and_output_weights should_pad_vocab seq_len_interpolation_factor
        softmax_scale transformer transformer_layer_spec quant_recipe fp8_dot_product_attention
        fp8_multi_head_attention seq_length""",
}
"""Without an option of their own at the end: what the configuration derives, or what a program sets."""


def named(name: str) -> list[str]:
    """The reasons under which a field is named; a star may stand at either end."""
    found = []
    for why, patterns in NOT_THE_FUNCTION.items():
        for one in patterns.split():
            core = one.strip("*")
            starts, ends = one.startswith("*"), one.endswith("*")
            if core in name if starts and ends else name.endswith(core) if starts else matches(name, [one]):
                found.append(why)
    return found


def test_every_field_that_a_model_is_built_from_is_kept_or_named():
    names = {field.name for config in (MLATransformerConfig, GPTModelConfig) for field in fields(config)}
    unknown = sorted(name for name in names if not matches(name, MODEL) and not named(name))
    assert not unknown, f"neither in model_options.py nor here: {unknown}"


OF_ONE_START = """
recipe unset backend override_scheme_check override_model_check compile_layers keep_last_checkpoints hf_export_interval
verify_checkpoint depth_monitor_interval rank_log_dir
peak_tflops metrics_file sample_data dry_run train_tokens lr_warmup_tokens lr_decay_tokens lr_wsd_decay_tokens help_megatron
"""


def test_every_option_of_ours_is_kept_or_named():
    """One that changes the model and is not kept would be evaluated as another model."""
    groups = [group for group in build_parser()._action_groups if group.title == "megatron_cod"]
    ours = {action.dest for group in groups for action in group._group_actions}
    unknown = {one for one in ours if not matches(one, (*MODEL, *scheme_options()))}
    assert len(groups) == 1 and unknown == set(OF_ONE_START.split())


def test_every_name_is_an_option():
    options = {action.dest for action in build_parser()._actions}
    assert not [one for one in (*MODEL, *TOKENIZER) if not any(matches(option, [one]) for option in options)]


def test_keeps_flags_that_another_needs():
    """Each pair: the second is refused by Megatron without the first, and neither is of the model."""
    pairs = {
        "use-distributed-optimizer": "use-precision-aware-optimizer",
        "optimizer-cpu-offload": "optimizer-offload-fraction",
        "overlap-grad-reduce": "overlap-param-gather",
        "use-megatron-fsdp": "megatron-fsdp-main-params-dtype",
        "save": "async-save",
        "cuda-graph-impl": "cuda-graph-modules",
        "fp8-format": "fp8-param-gather",
        "tp-comm-overlap": "tp-comm-overlap-cfg",
        "rerun-mode": "error-injection-rate",
        "exit-signal-handler": "exit-interval",
        "log-straggler": "straggler-minmax-count",
        "enable-ft-package": "calc-ft-timeouts",
    }
    recipe = dict.fromkeys([*pairs, *pairs.values()])
    dropped = set(keys_beside_the_model(recipe, build_parser()))
    assert dropped == set(recipe) - {"fp8-format"}


def test_keeps_the_model_and_unknown_keys():
    recipe = [
        "num-layers",
        "ffn_hidden_size",
        "norm-scheme",
        "swiglu",
        "untie-embeddings-and-output-weights",
        "num-layer",
    ]
    assert keys_beside_the_model(recipe, build_parser()) == []
    assert keys_beside_the_model(["tokenizer-type", "lr", "sft-packing"], build_parser(), TOKENIZER) == [
        "lr",
        "sft-packing",
    ]
