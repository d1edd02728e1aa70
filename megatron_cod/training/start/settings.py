"""Our own flags as types. Those of norm schemes are in each scheme's dataclass (``schemes/options.py``)."""

from dataclasses import dataclass, fields

from megatron_cod.args import MegatronArgs


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a command line and its recipe ask for beside Megatron's arguments; ``--help`` explains each."""

    recipe: str | None
    unset: list[str]
    import_modules: list[str]
    norm_scheme: str
    init_policy: str | None
    """Before a start is prepared None means the scheme's own."""
    backend: str
    """``auto``, or a name of ``backends.choice.BACKENDS``."""
    compile_layers: bool
    override_scheme_check: bool
    override_model_check: bool
    keep_last_checkpoints: int | None
    hf_export_interval: int | None
    """In steps; None: no export."""
    verify_checkpoint: bool
    depth_monitor_interval: int | None
    """In steps; None: no monitor."""
    rank_log_dir: str | None
    metrics_file: str | None
    peak_tflops: float | None
    sample_data: bool
    dry_run: bool
    train_tokens: int | None
    lr_warmup_tokens: int | None
    lr_decay_tokens: int | None
    lr_wsd_decay_tokens: int | None
    on_nonfinite: str
    """One of ``faults.flags.POLICIES``."""
    most_skipped_steps: int
    loss_spike_factor: float
    """In standard deviations; 0: no warning."""
    rewind_to: int | None
    rewind_skip: int
    """In steps."""
    hang_timeout: float | None
    """In seconds; 0: no watch; None: half of the collectives' time-out."""
    time_limit: str
    """``auto``, ``none``, or minutes from the start."""


def settings_of(args: MegatronArgs) -> Settings:
    """The settings in parsed arguments."""
    return Settings(**{one.name: getattr(args, one.name) for one in fields(Settings)})
