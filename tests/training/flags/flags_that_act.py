"""Arguments of Megatron-Core 0.19.2 that act by themselves, or are refused by Megatron's own validation or another check.

By the groups of its parser. ``test_void.py`` holds that there are no others.
"""

_BY_GROUP = {
    "transformer configuration": """
        add_bias_linear attention_dropout attention_output_gate bf16 calculate_per_token_loss config_logger_dir
        context_parallel_size cpu_offloading_num_layers cross_entropy_loss_fusion cuda_graph_impl
        defer_embedding_wgrad_compute delay_wgrad_compute deterministic_mode distribute_saved_activations
        embedding_init_method_std enable_cuda_graph ep_overlap_early_attn_memory_release
        experimental_attention_variant external_cuda_graph ffn_hidden_size fine_grained_activation_offloading fp16
        fp32_residual_connection fp4 fp8 hidden_dropout hidden_size hybrid_context_parallel init_method_std
        init_model_with_meta_device is_hybrid_model layernorm_epsilon layernorm_zero_centered_gamma
        mlp_chunks_for_training mtp_num_layers multi_latent_attention normalization num_attention_heads num_layers
        overlap_dispatch_backward_with_experts_wgrad overlap_moe_expert_parallel_comm overlap_p2p_comm_warmup_flush
        perform_initialization pipeline_model_parallel_size qk_clip qk_l2_norm qk_layernorm recompute_granularity
        softmax_type tensor_model_parallel_size tensor_parallel_num_weight_shards transformer_impl
        use_cpu_initialization use_kitchen_attention use_mup
        """,
    "network size": """
        add_position_embedding decoder_num_layers encoder_num_layers group_query_attention max_position_embeddings
        position_embedding_type quick_geglu squared_relu swiglu untie_embeddings_and_output_weights
        use_rotary_position_embeddings window_size
        """,
    "regularization": """
        clip_grad weight_decay
        """,
    "profiling": """
        profile record_memory_history
        """,
    "training": """
        batch_size bias_dropout_fusion check_for_nan_in_loss_and_grad check_weight_hash_across_dp_replicas_interval
        checkpoint_activations dataloader_type dump_param_to_param_group_map empty_unused_memory_level
        exit_duration_in_mins exit_interval exit_signal_handler exit_signal_handler_for_training global_batch_size
        gpu_sniff_test_interval gradient_accumulation_fusion iterations_to_skip manual_gc micro_batch_size optimizer
        optimizer_cpu_offload optimizer_cuda_graph rampup_batch_size recompute_activations
        result_rejected_tracker_filename step_batch_size_schedule train_iters train_samples train_sync_interval
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
        ckpt_convert_format dist_ckpt_optim_fully_reshardable load pretrained_checkpoint replication save
        save_activations_interval save_dgrads_interval save_params_interval save_tokens_per_expert_interval
        save_wgrads_interval use_checkpoint_args
        """,
    "mixed precision": """
        fp16_lm_cross_entropy
        """,
    "distributed init": """
        disable_jit_fuser distributed_backend distributed_timeout_minutes distributed_timeout_seconds_after_init
        fake_process_group flight_recorder_dump_path fsdp_manual_registration high_priority_stream_groups
        lazy_mpu_init model_parallel_size nccl_communicator_config_path nccl_ub num_distributed_optimizer_instances
        num_layers_per_virtual_pipeline_stage num_virtual_stages_per_pipeline_rank overlap_param_gather
        overlap_param_gather_with_optimizer_step pipeline_model_parallel_layout use_distributed_optimizer
        use_gloo_process_groups use_megatron_fsdp use_sharp use_torch_fsdp2 use_tp_pp_dp_mapping
        """,
    "validation": """
        eval_iters multiple_validation_sets skip_train test_mode
        """,
    "data and dataloader": """
        create_attention_mask_in_dataloader data_args_path data_cache_path data_path eod_mask_loss mmap_bin_files
        mock_data num_dataset_builder_threads num_workers per_split_data_args_path phase_transition_iterations
        seq_length test_data_path train_data_path valid_data_path
        """,
    "tokenizer": """
        chat_template padded_vocab_size tokenizer_type vocab_size
        """,
    "autoresume": """
        adlr_autoresume
        """,
    "moe": """
        num_experts
        """,
    "heterogeneous architecture": """
        heterogeneous_layers_config_path
        """,
    "logging": """
        log_device_memory_used log_energy log_interval log_memory_interval log_num_zeros_in_grad log_params_norm
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
    "experimental": """
        enable_experimental hybrid_layer_pattern hybrid_override_pattern spec use_precision_aware_optimizer yaml_cfg
        """,
    "one logger": """
        enable_one_logger
        """,
    "In-process restart": """
        inprocess_restart
        """,
    "ft_package": """
        enable_ft_package
        """,
    "rerun engine": """
        error_injection_rate rerun_mode
        """,
    "msc": """
        enable_msc
        """,
    "fault injector": """
        fault_injector_num_ranks fault_injector_ranks
        """,
}
ACT = frozenset(" ".join(_BY_GROUP.values()).split())
