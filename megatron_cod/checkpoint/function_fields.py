"""Which fields of Megatron's model configuration make the function of a model: tables for ``function_record.py``."""

from collections.abc import Mapping

_TENSORS = """
num_layers hidden_size num_attention_heads num_query_groups ffn_hidden_size kv_channels add_bias_linear add_qkv_bias
gated_linear_unit normalization qk_layernorm attention_output_gate multi_latent_attention q_lora_rank kv_lora_rank
qk_head_dim qk_pos_emb_head_dim v_head_dim num_moe_experts moe_layer_freq moe_ffn_hidden_size moe_latent_size
moe_router_enable_expert_bias moe_shared_expert_intermediate_size moe_shared_expert_gate
experimental_attention_variant linear_attention_freq linear_conv_kernel_dim linear_key_head_dim linear_value_head_dim
linear_num_key_heads linear_num_value_heads dsa_indexer_n_heads dsa_indexer_head_dim heterogeneous_block_specs
is_hybrid_model mamba_state_dim mamba_head_dim mamba_num_groups mamba_num_heads share_embeddings_and_output_weights
position_embedding_type
"""
TENSORS = frozenset(_TENSORS.split())
"""Names or shapes of tensors depend on them: a checkpoint of another value does not fit, also with an override."""

_FUNCTION = """
layernorm_epsilon layernorm_zero_centered_gamma apply_residual_connection_post_layernorm qk_l2_norm activation_func
glu_linear_offset activation_func_clamp_value softmax_scale softmax_type window_size window_attn_skip_freq
no_rope_freq mrope_section rotary_interleaved rotary_percent rotary_base rope_scaling rope_scaling_factor
seq_len_interpolation_factor rope_type rotary_scaling_factor original_max_position_embeddings beta_fast beta_slow
mscale mscale_all_dim use_mup mup_width_mult mup_base_hidden_size mup_embedding_mult mup_output_mult mup_base_head_dim
mup_attn_scale_power dsa_indexer_topk dsa_indexer_topk_freq dsa_indexer_skip_topk_offset dsa_indexer_rope_interleaved
dsa_indexer_rotate_activation dsa_indexer_scoring_relu dsa_indexer_k_norm_epsilon moe_router_topk
moe_router_num_groups moe_router_group_topk moe_router_pre_softmax moe_router_topk_limited_devices
moe_router_topk_scaling_factor moe_router_score_function moe_router_load_balancing_type moe_apply_probs_on_input
moe_router_force_load_balancing moe_router_force_biased moe_expert_capacity_factor moe_pad_expert_input_to_capacity
moe_token_drop_policy moe_token_dropping moe_mlp_glu_interleave_size moe_shared_expert_glu_interleave_size
mtp_num_layers mtp_use_repeated_layer mtp_hybrid_override_pattern quant_recipe use_arbitrary_attention_mask
"""
_YARN = """
yarn_rotary_scaling_factor yarn_original_max_position_embeddings yarn_beta_fast yarn_beta_slow yarn_mscale
yarn_mscale_all_dim yarn_correction_range_round_to_int
"""
YARN = frozenset(_YARN.split())
"""Of ``--position-embedding-type yarn``: no fields of a class."""
FUNCTION = frozenset(_FUNCTION.split()) | YARN
"""The tensors stay the same, and what is computed from them does not."""

_WITHOUT_FLAG = """
beta_fast beta_slow original_max_position_embeddings moe_router_topk_limited_devices moe_token_dropping
use_arbitrary_attention_mask
"""
WITHOUT_FLAG = frozenset(_WITHOUT_FLAG.split())
"""Fields that no flag of Megatron-Core 0.19.2 sets."""

MAY_DIFFER: Mapping[str, str] = {
    "the layout": """
        tensor_model_parallel_size pipeline_model_parallel_size virtual_pipeline_model_parallel_size sequence_parallel
        context_parallel_size hierarchical_context_parallel_sizes hybrid_context_parallel max_seqlen_per_dp_cp_rank
        expert_model_parallel_size expert_tensor_parallel_size num_layers_in_first_pipeline_stage
        num_layers_in_last_pipeline_stage pipeline_model_parallel_layout account_for_embedding_in_pipeline_split
        account_for_loss_in_pipeline_split mtp_standalone microbatch_group_size_per_vp_stage gtp_weight_remat_size
        expert_gtp_weight_remat_size tensor_parallel_num_weight_shards expert_tensor_parallel_num_weight_shards
        parallel_output scatter_embedding_sequence_parallel cp_comm_type hetereogenous_dist_checkpoint
        """,
    "how ranks communicate": """
        barrier_with_L1_time batch_p2p_comm batch_p2p_sync deallocate_pipeline_outputs overlap_p2p_comm
        overlap_p2p_comm_warmup_flush pipeline_model_parallel_comm_backend use_ring_exchange_p2p variable_seq_lengths
        tp_comm_atomic_ag tp_comm_atomic_rs tp_comm_bootstrap_backend tp_comm_bulk_dgrad tp_comm_bulk_wgrad
        tp_comm_overlap tp_comm_overlap_ag tp_comm_overlap_disable_fc1 tp_comm_overlap_disable_qkv tp_comm_overlap_rs
        tp_comm_overlap_rs_dgrad tp_comm_split_ag tp_comm_split_rs tp_comm_overlap_cfg symmetric_ar_type
        has_cond_embedder
        nccl_all_reduce_for_prefill high_priority_a2a_comm_stream moe_shared_expert_overlap moe_token_dispatcher_type
        moe_enable_deepep moe_flex_dispatcher_backend moe_flex_dispatcher_num_sms moe_deepep_num_sms
        moe_hybridep_num_sms moe_hybridep_num_blocks_permute moe_hybridep_num_blocks_unpermute
        moe_hybridep_num_sms_preprocessing moe_permute_fusion_into_hybridep moe_hybridep_pad_uneven_dispatch_inputs
        moe_ncclep_static_shape moe_ncclep_zero_copy moe_expert_rank_capacity_factor
        overlap_moe_expert_parallel_comm overlap_dispatch_backward_with_experts_wgrad
        ep_overlap_early_attn_memory_release
        """,
    "which kernels compute it": """
        transformer_impl backend attention_backend flash_attention_version transformer_layer_spec
        apply_query_key_layer_scaling bias_activation_fusion masked_softmax_fusion persist_layer_norm
        memory_efficient_layer_norm bias_dropout_fusion apply_rope_fusion use_fused_weighted_squared_relu
        fused_single_qkv_rope fused_residual_rmsnorm use_transformer_engine_op_fuser use_te_activation_func
        moe_permute_fusion moe_router_fusion moe_grouped_gemm moe_single_grouped_weight moe_single_grouped_bias
        use_grouped_gemm_for_dense_mlp use_grouped_gemm_for_shared_expert use_kitchen use_kitchen_attention
        kitchen_attention_backend dsa_kernel_backend use_mamba_mem_eff_path batch_invariant_mode mla_down_proj_fusion
        cross_entropy_loss_fusion cross_entropy_fusion_impl gradient_accumulation_fusion delay_wgrad_compute
        defer_embedding_wgrad_compute wgrad_deferral_limit deterministic_mode
        """,
    "in which precision": """
        bf16 fp16 params_dtype pipeline_dtype enable_autocast autocast_dtype fp32_residual_connection
        attention_softmax_in_fp32 disable_bf16_reduced_precision_matmul fp16_lm_cross_entropy moe_router_dtype
        dsa_indexer_k_norm_fp32 mamba_training_ssm_states_dtype activation_func_fp8_input_store
        fp8 fp8_recipe fp8_param fp8_quantizer_factory fp8_margin fp8_interval fp8_amax_history_len
        fp8_amax_compute_algo fp8_wgrad fp8_output_proj fp8_dot_product_attention fp8_multi_head_attention
        tp_only_amax_red first_last_layers_bf16 num_layers_at_start_in_bf16 num_layers_at_end_in_bf16
        fp4 fp4_recipe fp4_param fp4_quantizer_factory moe_router_padding_for_quantization moe_router_padding_for_fp8
        disable_parameter_transpose_cache
        """,
    "what is kept in memory": """
        recompute_granularity recompute_method recompute_num_layers distribute_saved_activations recompute_modules
        moe_layer_recompute num_microbatches_with_partial_activation_checkpoints cpu_offloading
        cpu_offloading_activations cpu_offloading_double_buffering cpu_offloading_num_layers
        cpu_offloading_retain_pinned_cpu_buffers cpu_offloading_weights _cpu_offloading_context
        fine_grained_activation_offloading offload_modules min_offloaded_tensor_size delay_offload_until_cuda_graph
        delta_offload_bytes_across_pp_ranks activation_offload_fraction fine_grained_offloading_max_inflight_offloads
        moe_paged_stash moe_paged_stash_page_size moe_paged_stash_buffer_size_factor_cuda
        moe_paged_stash_buffer_size_factor_cpu clone_scatter_output_in_embedding mlp_chunks_for_prefill
        mlp_chunks_for_training enable_cuda_graph cuda_graph_use_single_mempool cuda_graph_retain_backward_graph
        cuda_graph_warmup_steps external_cuda_graph cuda_graph_impl cuda_graph_modules inference_cuda_graph_scope
        cuda_graph_scope
        """,
    "how it is trained": """
        hidden_dropout attention_dropout calculate_per_token_loss moe_aux_loss_coeff moe_z_loss_coeff
        moe_input_jitter_eps moe_router_bias_update_rate moe_router_quantile_balancing_ema moe_enable_routing_replay
        moe_per_layer_logging mtp_loss_scaling_factor mtp_detach_heads dsa_indexer_loss_coeff
        dsa_indexer_use_sparse_loss experimental_attention_variant_loss_scale_func qk_clip qk_clip_alpha
        qk_clip_threshold log_max_attention_logit finalize_model_grads_func grad_scale_func grad_sync_func
        moe_grad_scale_func mtp_grad_scale_func no_sync_func param_sync_func timers
        """,
    "how it was initialised": """
        init_method output_layer_init_method init_method_std embedding_init_method embedding_init_method_std
        init_model_with_meta_device perform_initialization use_cpu_initialization use_te_rng_tracker
        """,
    "generation only": """
        flash_decode inference_rng_tracker inference_sampling_seed use_inference_optimized_layers
        inference_fuse_tp_communication inference_disable_triton_nvls_kernels inference_grouped_gemm_backend
        inference_moe_disable_fused_quant_kernels inference_moe_token_dispatcher_type cache_mla_latents
        moe_pad_experts_for_cuda_graph_inference
        """,
    "checked elsewhere: the padded vocabulary, the length of a sample, the norm scheme": """
        vocab_size make_vocab_size_divisible_by should_pad_vocab seq_length design
        """,
    "hooks and logs": """
        transformer pre_wrap_hooks post_wrap_hooks extra_checkpoint_metadata restore_modelopt_state config_logger_dir
        test_mode
        """,
}
"""Why each of these fields need not agree -> the fields."""

FREE = frozenset(" ".join(MAY_DIFFER.values()).split())

ARGUMENTS = {
    "num_moe_experts": "num_experts",
    "gated_linear_unit": "swiglu",
    "activation_func": "swiglu",
    "share_embeddings_and_output_weights": "untie_embeddings_and_output_weights",
    "rope_scaling": "use_rope_scaling",
    "seq_len_interpolation_factor": "rotary_seq_len_interpolation_factor",
    "softmax_scale": "use_mup",
    "mup_width_mult": "mup_base_hidden_size",
    "yarn_rotary_scaling_factor": "rotary_scaling_factor",
    "yarn_mscale": "mscale",
    "yarn_mscale_all_dim": "mscale_all_dim",
}
"""Fields of the configuration whose argument has another name, or that are derived from it."""
FLAGS = {
    "layernorm_epsilon": "--norm-epsilon",
    "layernorm_zero_centered_gamma": "--apply-layernorm-1p",
    "add_bias_linear": "--disable-bias-linear",
    "dsa_indexer_rotate_activation": "--no-dsa-indexer-rotate-activation",
    "dsa_indexer_scoring_relu": "--no-dsa-indexer-scoring-relu",
    "heterogeneous_block_specs": "--heterogeneous-layers-config-path",
    "quant_recipe": "--te-precision-config-file",
}
"""Fields whose flag is not named as the argument is."""
DERIVED = frozenset(("kv_channels", "num_query_groups", "ffn_hidden_size", "moe_ffn_hidden_size"))
"""Arguments that Megatron's validation fills in; an imported checkpoint's were not validated."""
