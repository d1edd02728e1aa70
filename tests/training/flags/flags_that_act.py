"""Arguments of Megatron-Core 0.19.2 that act by themselves, or are refused by Megatron's own validation or another check.

By the groups of its parser. ``test_void_flags.py`` holds that there are no others.
"""

_BY_GROUP = {
    "transformer configuration": """
        add_bias_linear add_qkv_bias apply_query_key_layer_scaling apply_residual_connection_post_layernorm
        attention_backend attention_dropout attention_output_gate batch_invariant_mode bf16
        calculate_per_token_loss clone_scatter_output_in_embedding config_logger_dir context_parallel_size
        cpu_offloading_num_layers cpu_offloading_retain_pinned_cpu_buffers cross_entropy_fusion_impl
        cross_entropy_loss_fusion cuda_graph_impl defer_embedding_wgrad_compute delay_wgrad_compute
        deterministic_mode disable_bf16_reduced_precision_matmul distribute_saved_activations
        embedding_init_method_std enable_cuda_graph ep_overlap_early_attn_memory_release
        experimental_attention_variant expert_tensor_parallel_num_weight_shards external_cuda_graph ffn_hidden_size
        fine_grained_activation_offloading fp16 fp32_residual_connection fp4 fp8 fused_residual_rmsnorm
        hidden_dropout hidden_size hierarchical_context_parallel_sizes high_priority_a2a_comm_stream
        hybrid_context_parallel init_method_std init_model_with_meta_device is_hybrid_model kv_channels
        layernorm_epsilon layernorm_zero_centered_gamma max_seqlen_per_dp_cp_rank
        microbatch_group_size_per_vp_stage mlp_chunks_for_training mtp_num_layers multi_latent_attention
        normalization num_attention_heads num_layers overlap_dispatch_backward_with_experts_wgrad
        overlap_moe_expert_parallel_comm overlap_p2p_comm_warmup_flush perform_initialization
        pipeline_model_parallel_comm_backend pipeline_model_parallel_size qk_clip qk_l2_norm qk_layernorm
        recompute_granularity recompute_method recompute_num_layers softmax_type symmetric_ar_type
        tensor_model_parallel_size tensor_parallel_num_weight_shards tp_comm_bootstrap_backend tp_comm_overlap
        transformer_impl use_cpu_initialization use_fused_weighted_squared_relu use_grouped_gemm_for_dense_mlp
        use_grouped_gemm_for_shared_expert use_kitchen_attention use_mup use_ring_exchange_p2p
        use_te_activation_func use_transformer_engine_op_fuser
        """,
    "network size": """
        add_position_embedding decoder_num_layers encoder_num_layers group_query_attention
        make_vocab_size_divisible_by max_position_embeddings onnx_safe openai_gelu position_embedding_type
        quick_geglu squared_relu swiglu untie_embeddings_and_output_weights use_rotary_position_embeddings
        window_size
        """,
    "regularization": """
        apply_wd_to_qk_layernorm clip_grad no_weight_decay_cond_type weight_decay
        """,
    "profiling": """
        nvtx_ranges profile record_memory_history
        """,
    "training": """
        apply_rope_fusion batch_size bias_dropout_fusion bias_gelu_fusion bias_swiglu_fusion check_for_large_grads
        check_for_nan_in_loss_and_grad check_weight_hash_across_dp_replicas_interval checkpoint_activations
        dataloader_type decrease_batch_size_if_needed deprecated_use_mcore_models dump_param_to_param_group_map
        empty_unused_memory_level exit_duration_in_mins exit_interval exit_signal exit_signal_handler
        exit_signal_handler_for_dataloader exit_signal_handler_for_training global_batch_size
        gpu_sniff_test_interval gradient_accumulation_fusion iterations_to_skip manual_gc manual_gc_eval
        manual_gc_interval masked_softmax_fusion micro_batch_size no_persist_layer_norm optimizer
        optimizer_cpu_offload optimizer_cuda_graph rampup_batch_size recompute_activations
        result_rejected_tracker_filename step_batch_size_schedule train_iters train_samples train_sync_interval
        use_flash_attn
        """,
    "rl": """
        perform_rl_step
        """,
    "RNG and initialization": """
        data_parallel_random_init init_method_xavier_uniform seed te_rng_tracker
        """,
    "learning rate and weight decay": """
        decoupled_lr end_weight_decay freeze_all_layers lr lr_decay_style lr_warmup_fraction lr_warmup_iters
        lr_warmup_samples lr_wsd_decay_iters lr_wsd_decay_samples start_weight_decay warmup weight_decay_incr_style
        """,
    "checkpointing": """
        async_save auto_detect_ckpt_format ckpt_assume_constant_structure ckpt_convert_format ckpt_convert_save
        ckpt_convert_update_legacy_dist_opt_format ckpt_format ckpt_fully_parallel_load_exchange_algo
        ckpt_fully_parallel_load_process_group ckpt_fully_parallel_save ckpt_fully_parallel_save_deprecated
        ckpt_fully_parallel_save_process_group ckpt_load_validate_sharding_integrity dist_ckpt_format_deprecated
        dist_ckpt_optim_fully_reshardable dist_ckpt_save_pre_mcore_014 dist_ckpt_strictness
        distrib_optim_fully_reshardable_mem_efficient load non_persistent_ckpt_type non_persistent_global_ckpt_dir
        non_persistent_local_ckpt_algo non_persistent_local_ckpt_dir non_persistent_save_interval
        override_ckpt_iteration pretrained_checkpoint replication save save_activations_interval
        save_dgrads_interval save_params_interval save_tokens_per_expert_interval save_wgrads_interval
        stream_ckpt_dequant strict_fsdp_dtensor_load use_checkpoint_args use_dist_ckpt_deprecated
        use_mp_args_from_checkpoint_args use_persistent_ckpt_worker use_tokenizer_model_from_checkpoint_args
        verify_integrity
        """,
    "mixed precision": """
        accumulate_allreduce_grads_in_fp32 attention_softmax_in_fp32 fp16_lm_cross_entropy
        reuse_grad_buf_for_mxfp8_param_ag
        """,
    "distributed init": """
        align_grad_reduce align_param_gather create_all_gather_group ddp_average_in_collective ddp_bucket_size
        ddp_num_buckets ddp_pad_buckets_for_high_nccl_busbw ddp_param_name_patterns_for_fp32_local_accumulation
        ddp_reduce_scatter_with_fp32_accumulation decoder_first_pipeline_num_layers
        decoder_last_pipeline_num_layers disable_jit_fuser disable_symmetric_registration distributed_backend
        distributed_timeout_minutes distributed_timeout_seconds_after_init fake_process_group
        flight_recorder_dump_path fsdp_manual_registration gradient_reduce_div_fusion high_priority_stream_groups
        lazy_mpu_init local_rank model_parallel_size nccl_communicator_config_path nccl_ub
        num_distributed_optimizer_instances num_layers_per_virtual_pipeline_stage
        num_virtual_stages_per_pipeline_rank overlap_grad_reduce overlap_p2p_comm overlap_param_gather
        overlap_param_gather_with_optimizer_step pipeline_model_parallel_layout sharp_enabled_group
        use_distributed_optimizer use_gloo_process_groups use_layer_wise_param_layout use_megatron_fsdp use_sharp
        use_torch_fsdp2 use_tp_pp_dp_mapping
        """,
    "validation": """
        eval_interval eval_iters full_validation multiple_validation_sets skip_train test_mode
        """,
    "data and dataloader": """
        create_attention_mask_in_dataloader data_args_path data_cache_path data_path eod_mask_loss mmap_bin_files
        mock_data num_dataset_builder_threads num_workers per_split_data_args_path phase_transition_iterations
        seq_length test_data_path train_data_path valid_data_path
        """,
    "tokenizer": """
        chat_template merge_file metadata_path null_tokenizer_eod_id null_tokenizer_pad_id pad_vocab_size
        padded_vocab_size special_tokens tiktoken_num_special_tokens tiktoken_pattern
        tokenizer_hf_no_include_special_tokens tokenizer_hf_no_use_fast tokenizer_model
        tokenizer_sentencepiece_ignore_extra_whitespaces tokenizer_sentencepiece_legacy tokenizer_type
        trust_remote_code vocab_extra_ids vocab_file vocab_size
        """,
    "autoresume": """
        adlr_autoresume
        """,
    "moe": """
        moe_use_upcycling num_experts
        """,
    "heterogeneous architecture": """
        heterogeneous_layers_config_encoded_json heterogeneous_layers_config_path
        """,
    "logging": """
        barrier_with_L1_time log_device_memory_used log_energy log_interval log_loss_scale_to_tensorboard
        log_max_attention_logit log_memory_interval log_num_zeros_in_grad log_params_norm log_progress
        log_throughput logging_level tensorboard_dir timing_log_level timing_log_option wandb_project
        """,
    "Logits Distillation": """
        logits_load_dir logits_save_dir
        """,
    "straggler": """
        log_straggler
        """,
    "workload inspector": """
        run_workload_inspector_server
        """,
    "inference": """
        cuda_graph_scope_deprecated
        """,
    "Transformer-Engine": """
        te_precision_config_file
        """,
    "experimental": """
        enable_experimental exp_avg_dtype exp_avg_sq_dtype hybrid_layer_pattern hybrid_override_pattern
        main_grads_dtype main_params_dtype spec use_precision_aware_optimizer yaml_cfg
        """,
    "one logger": """
        app_tag_run_name app_tag_run_version enable_one_logger one_logger_async one_logger_project
        one_logger_run_name
        """,
    "In-process restart": """
        inprocess_restart
        """,
    "ft_package": """
        enable_ft_package
        """,
    "rerun engine": """
        check_for_spiky_loss error_injection_rate rerun_mode
        """,
    "msc": """
        disable_msc_deprecated enable_msc
        """,
    "fault injector": """
        fault_injector_num_ranks fault_injector_ranks
        """,
}
ACT = frozenset(" ".join(_BY_GROUP.values()).split())
