"""The fields of Megatron's arguments that this package reads, with their types; and ours among them.

A plain parse of the command line has the same fields, some of them still None: a size that is typed ``int`` here is set
after Megatron's validation, and before it in those checks of ``training/start/checks.py`` that need them.
"""

from typing import Any, Protocol


class MegatronArgs(Protocol):
    """``megatron.training.get_args()``, as far as it is read here. Megatron-Core 0.19.2."""

    # The model
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    group_query_attention: bool
    kv_channels: int
    seq_length: int
    decoder_seq_length: int | None
    max_position_embeddings: int
    vocab_size: int
    padded_vocab_size: int
    add_bias_linear: bool
    add_qkv_bias: bool
    swiglu: bool
    normalization: str
    layernorm_epsilon: float
    qk_layernorm: bool
    untie_embeddings_and_output_weights: bool
    position_embedding_type: str
    rope_type: str | None
    rotary_base: int
    rotary_percent: float
    rotary_scaling_factor: float
    use_rope_scaling: bool
    rope_scaling_factor: float
    softmax_type: str
    attention_dropout: float
    hidden_dropout: float
    spec: list[str] | None
    heterogeneous_layers_config_path: str | None
    experimental_attention_variant: str | None
    multi_latent_attention: bool
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_head_dim: int
    qk_pos_emb_head_dim: int
    v_head_dim: int
    mscale: float
    mscale_all_dim: float
    mtp_num_layers: int | None
    mtp_use_repeated_layer: bool
    use_grouped_gemm_for_dense_mlp: bool

    # Experts
    num_experts: int
    """None in a dense model."""
    moe_layer_freq: int | list[int]
    no_rope_freq: int | list[int] | None
    moe_ffn_hidden_size: int | None
    moe_latent_size: int | None
    moe_shared_expert_intermediate_size: int | None
    moe_token_dispatcher_type: str
    moe_flex_dispatcher_backend: str
    moe_expert_capacity_factor: float | None
    moe_pad_expert_input_to_capacity: bool
    moe_router_topk: int
    moe_router_load_balancing_type: str | list[str]
    moe_router_num_groups: int | None
    moe_router_group_topk: int | None
    moe_router_pre_softmax: bool
    moe_router_score_function: str
    moe_router_topk_scaling_factor: float | None
    moe_router_enable_expert_bias: bool
    overlap_moe_expert_parallel_comm: bool
    overlap_p2p_comm: bool
    tp_comm_overlap: bool

    # Kernels and precision
    transformer_impl: str
    attention_backend: Any
    apply_rope_fusion: bool
    gradient_accumulation_fusion: bool
    no_persist_layer_norm: bool
    bf16: bool
    fp16: bool
    params_dtype: Any
    loss_scale: float | None
    cuda_graph_impl: str
    cuda_graph_modules: list[Any]
    recompute_granularity: str | None
    recompute_method: str | None
    recompute_modules: list[str] | None
    recompute_num_layers: int | None
    distribute_saved_activations: bool

    # The layout
    rank: int
    world_size: int
    tensor_model_parallel_size: int
    sequence_parallel: bool
    pipeline_model_parallel_size: int
    pipeline_model_parallel_layout: Any
    virtual_pipeline_model_parallel_size: int | None
    num_virtual_stages_per_pipeline_rank: int | None
    num_layers_per_virtual_pipeline_stage: int | None
    microbatch_group_size_per_vp_stage: int | None
    decoder_first_pipeline_num_layers: int | None
    decoder_last_pipeline_num_layers: int | None
    account_for_embedding_in_pipeline_split: bool
    account_for_loss_in_pipeline_split: bool
    context_parallel_size: int
    hybrid_context_parallel: bool
    expert_model_parallel_size: int
    expert_tensor_parallel_size: int
    data_parallel_size: int
    use_tp_pp_dp_mapping: bool
    use_distributed_optimizer: bool
    overlap_grad_reduce: bool
    overlap_param_gather: bool
    grad_reduce_in_bf16: bool
    use_torch_fsdp2: bool
    use_megatron_fsdp: bool
    fake_process_group: bool
    distributed_backend: str
    distributed_timeout_minutes: int
    distributed_timeout_seconds_after_init: int | None

    # The optimizer and its schedule
    optimizer: str
    optimizer_cpu_offload: bool
    optimizer_cuda_graph: bool
    use_precision_aware_optimizer: bool
    main_grads_dtype: Any
    main_params_dtype: Any
    exp_avg_dtype: Any
    exp_avg_sq_dtype: Any
    accumulate_allreduce_grads_in_fp32: bool
    sgd_momentum: float
    adam_eps: float
    weight_decay: float
    lr: float
    override_opt_param_scheduler: bool
    use_checkpoint_opt_param_scheduler: bool
    lr_decay_style: str
    min_lr: float
    decoupled_lr: float | None
    decoupled_min_lr: float | None
    apply_wd_to_qk_layernorm: bool
    start_weight_decay: float | None
    end_weight_decay: float | None
    weight_decay_incr_style: str
    lr_decay_iters: int | None
    lr_decay_samples: int | None
    lr_warmup_fraction: float | None
    lr_warmup_iters: int
    lr_warmup_samples: int
    lr_wsd_decay_iters: int | None
    lr_wsd_decay_samples: int | None
    micro_batch_size: int
    global_batch_size: int
    """None under a schedule of batch sizes."""
    rampup_batch_size: list[int] | None
    step_batch_size_schedule: str | None
    phase_transition_iterations: Any
    train_iters: int | None
    train_samples: int | None
    eval_iters: int
    eval_interval: int
    eval_global_batch_size: int | None
    eval_micro_batch_size: int | None
    full_validation: bool
    multiple_validation_sets: bool
    seed: int
    use_cpu_initialization: bool | None
    init_model_with_meta_device: bool

    # The data
    tokenizer_type: str | None
    tokenizer_model: str | None
    tokenizer_hf_no_include_special_tokens: bool
    null_tokenizer_eod_id: int | None
    chat_template: str | None
    mock_data: bool
    data_path: list[str] | None
    sample_data: bool
    train_data_path: list[str] | None
    valid_data_path: list[str] | None
    test_data_path: list[str] | None
    data_args_path: str | None
    per_split_data_args_path: str | None
    data_cache_path: str | None
    data_content: dict[str, str]
    """Prefix -> digest of what the dataset holds, on one rank a machine; only pretraining has it."""
    data_sharding: bool
    split: str | None
    dataloader_type: str | None
    num_workers: int
    num_dataset_builder_threads: int
    mmap_bin_files: bool
    create_attention_mask_in_dataloader: bool
    reset_position_ids: bool
    reset_attention_mask: bool
    eod_mask_loss: bool
    sft: bool

    # Checkpoints and logs
    save: str | None
    load: str | None
    pretrained_checkpoint: str | None
    finetune: bool
    ckpt_step: int | None
    ckpt_format: str
    use_checkpoint_args: bool
    no_load_optim: bool | None
    no_load_rng: bool | None
    no_save_optim: bool | None
    async_save: bool
    save_interval: int | None
    save_retain_interval: int | None
    non_persistent_save_interval: int | None
    non_persistent_ckpt_type: str | None
    dist_ckpt_strictness: str
    exit_interval: int | None
    exit_duration_in_mins: int | None
    exit_signal_handler: bool
    log_interval: int
    timing_log_level: int
    tensorboard_dir: str | None
    wandb_project: str | None
    yaml_cfg: str | None
    enable_msc: bool
    disable_msc_deprecated: bool

    # Where the run is, set by Megatron's loop
    iteration: int
    curr_iteration: int
    do_valid: bool
    skip_train: bool
    log_validation_ppl_to_tensorboard: bool
    consumed_train_samples: int
    consumed_valid_samples: int
    do_train: bool

    # Ours, beside those of the norm schemes (``schemes/options.py``)
    norm_scheme: str
    init_policy: str | None
    backend: str
    residual_warmup_steps: int | None
    geglu: bool
    override_scheme_check: bool
    override_model_check: bool
    keep_last_checkpoints: int | None
    hf_export_interval: int | None
    compile_layers: bool
    import_modules: list[str]
    verify_checkpoint: bool
    depth_monitor_interval: int | None
    metrics_file: str | None
    peak_tflops: float | None
    dry_run: bool
    train_tokens: int | None
    lr_warmup_tokens: int | None
    lr_decay_tokens: int | None
    lr_wsd_decay_tokens: int | None
    on_nonfinite: str
    most_skipped_steps: int
    loss_spike_factor: float
    rewind_to: int | None
    rewind_skip: int
    hang_timeout: float | None
    time_limit: str
    device_kind: str
    model_function: dict[str, Any]
    megatron_cod_version: str
