"""Conditions under which Megatron-Core 0.19.2 reads a flag of logs, profiles and recovery: more rows of ``void.py``."""

from __future__ import annotations

from megatron_cod.training.flags.void_row import Void

LOG_CONDITIONS = (
    Void("wandb_*", lambda a: a.wandb_project, "without --wandb-project", training=True, but="wandb_project"),
    Void(
        "tensorboard_log_interval tensorboard_queue_size log_timers_to_tensorboard log_validation_ppl_to_tensorboard "
        "log_memory_to_tensorboard log_world_size_to_tensorboard",
        lambda a: a.tensorboard_dir,
        "without --tensorboard-dir, or --save",
        training=True,
    ),
    Void(
        "profile_* use_pytorch_profiler record_shapes",
        lambda a: a.profile,
        "without --profile",
        training=True,
    ),
    Void("pytorch_profiler_*", lambda a: a.use_pytorch_profiler, "without --use-pytorch-profiler", training=True),
    Void("memory_snapshot_path", lambda a: a.record_memory_history, "without --record-memory-history", training=True),
    Void("adlr_autoresume_interval", lambda a: a.adlr_autoresume, "without --adlr-autoresume", training=True),
    Void(
        "logits_load_*", lambda a: a.logits_load_dir, "without --logits-load-dir", training=True, but="logits_load_dir"
    ),
    Void(
        "logits_save_*", lambda a: a.logits_save_dir, "without --logits-save-dir", training=True, but="logits_save_dir"
    ),
    Void(
        "straggler_* disable_straggler_on_startup", lambda a: a.log_straggler, "without --log-straggler", training=True
    ),
    Void(
        "ft_num_warmup_iters calc_ft_timeouts",
        lambda a: a.enable_ft_package,
        "without --enable-ft-package",
        training=True,
    ),
    Void(
        "inprocess_*",
        lambda a: a.inprocess_restart,
        "without --inprocess-restart",
        training=True,
        but="inprocess_restart",
    ),
    Void("error_injection_type", lambda a: a.error_injection_rate, "without --error-injection-rate", training=True),
    Void(
        "fault_injector_*",
        lambda a: a.fault_injector_ranks or a.fault_injector_num_ranks,
        "without --fault-injector-ranks or --fault-injector-num-ranks",
        training=True,
        but="fault_injector_ranks fault_injector_num_ranks",
    ),
    Void("async_*", lambda a: a.async_save, "without --async-save", training=True, but="async_save"),
    Void("replication_*", lambda a: a.replication, "without --replication", training=True),
    Void(
        "flight_recorder_*",
        lambda a: a.flight_recorder_dump_path,
        "without --flight-recorder-dump-path",
        training=True,
        but="flight_recorder_dump_path",
    ),
)
