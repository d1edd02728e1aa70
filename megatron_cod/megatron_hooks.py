"""Every name of Megatron's or torch's that we replace, set or hook: ``docs/megatron_hooks.md`` is printed from here.

Names that are replaced as a whole are rows of ``cpu.ADAPTED`` and ``torch_only.TORCH_ADAPTED``. ``HOOKED`` has the
rest: attributes of single objects, settings of Megatron's that are functions, hooks of modules. A test scans the sources
for both and fails on what is in no table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from megatron_cod.adaptations import cpu, torch_only
from megatron_cod.adaptations.table import Adapted

RUN = "training"


@dataclass(frozen=True)
class Hooked:
    """One name, on CPU processes and GPUs alike."""

    name: str
    how: str
    """What is done with it."""
    reason: str
    sites: tuple[str, ...]
    """Where: "file function: what", as the test's scan finds it; ``*`` matches anything."""
    program: str = RUN
    """Which programs do it."""


HOOKED = (
    Hooked(
        "`zero_grad_buffer` of the first model chunk",
        "set on this one object, to call the original",
        "Megatron has no callbacks: a training step begins here, outside of CUDA graphs",
        ("training/loop/step_hooks.py Steps._hook_steps: first.zero_grad_buffer",),
    ),
    Hooked(
        "`finalize_model_grads_func` of the model's configuration",
        "a setting of Megatron's that is a function: ours calls the default",
        "the gradients of a step are complete here: the check for NaN, the depth monitor",
        (
            "training/loop/step_hooks.py hook_gradients: config.finalize_model_grads_func",
            "training/faults/nonfinite_search.py _aside: config.finalize_model_grads_func",
        ),
    ),
    Hooked(
        "`timers` of the model's configuration",
        "taken out while a step that is not finite is run again",
        "timers of Megatron's refuse to be started twice",
        ("training/faults/nonfinite_search.py _aside: config.timers",),
    ),
    Hooked(
        "`step` of the optimizer",
        "set on this one object for one step",
        "a step that is not finite is skipped, as Megatron's loss scaler skips one",
        (
            "training/faults/nonfinite.py before_step: optimizer.step",
            "training/faults/nonfinite.py before_step.checked_first: optimizer.step",
        ),
    ),
    Hooked(
        "`load_state_dict` of the optimizer",
        "set on this one object for one call, with --override- or --use-checkpoint-opt_param-scheduler",
        "Megatron finds the groups of a saved optimizer by their rates, and no other --lr could be chosen on resume",
        (
            "training/loop/resumed_rates.py match_rates*: optimizer.load_state_dict",
            "training/loop/resumed_rates.py ResumedRates.model_built: inner.register_load_state_dict_post_hook",
        ),
    ),
    Hooked(
        "`_should_call_local_cudagraph` of a layer",
        "set on this one object, under `--cuda-graph-impl local`",
        "Megatron 0.19.2 replays the graph of training in a validation: with dropout, and without hooks",
        ("training/monitoring/stream_variance.py validate_without_graph: layer._should_call_local_cudagraph",),
    ),
    Hooked(
        "forward hooks of the decoder layers",
        "registered",
        "variance of the residual stream in validation, the depth monitor, the search for a layer that is not finite",
        (
            "training/loop/layer_hooks.py hook_layers*: *.register_forward*",
            "training/monitoring/depth_monitor.py DepthMonitor.model_built: module.register_forward_hook",
            "training/faults/nonfinite_search.py _watched: module.register_forward_hook",
        ),
    ),
    Hooked(
        "forward pre-hook of the output layer",
        "registered",
        "a model of lower precision computes its logits in fp32 in a validation",
        ("training/validation/fp32_logits.py raise_logits: layer.register_forward_pre_hook",),
    ),
    Hooked(
        "gradient hooks of a layer's output",
        "registered on the tensor, in a monitored step",
        "the depth monitor, the search for a layer that is not finite",
        (
            "training/monitoring/depth_monitor.py DepthMonitor._hook: stream.register_hook",
            "training/faults/nonfinite_search.py _hook.hook: value.register_hook",
        ),
    ),
    Hooked(
        "`megatron.training.global_vars._GLOBAL_TENSORBOARD_WRITER`",
        "replaced on the last rank, to pass on to the original",
        "metrics, progress line and loss spikes: the one place that is given every reduced value. There is no setter",
        ("training/monitoring/metrics_writer.py install_metrics_writer: global_vars._GLOBAL_TENSORBOARD_WRITER",),
    ),
    Hooked(
        "`transformer_layer_spec`, `rope_scaling_factor`, `output_layer_init_method` of the configuration",
        "set before the model is built",
        "fields that Megatron reads: the norm scheme's layers and initialisation, and a flag of Megatron's that it drops",
        (
            "model.py attach_design: config.transformer_layer_spec",
            "model.py model_config_from_args: config.rope_scaling_factor",
            "schemes/init_policy.py apply_init_policy: config.output_layer_init_method",
        ),
    ),
    Hooked(
        "`init_method`, `init_method_std`, `use_mup`, `mup_output_mult` of the configuration",
        "set before the model is built, under a scheme with rules of width",
        "fields that Megatron reads: initialisation, and what it multiplies the logits by; not its rates",
        ("schemes/complete_p.py configure: config.*",),
    ),
    Hooked(
        "`activation_func`, `bias_activation_fusion` of the configuration",
        "set before the model is built, with `--geglu`",
        "fields that Megatron reads: a gate that it has no flag for, and that its fusions do not know",
        ("schemes/activation.py gate_with_gelu: config.*",),
    ),
    Hooked(
        "`is_embedding_or_output_parameter` of parameters, `decoupled_lr` of the arguments",
        "set before the optimizer is built, under a scheme with rates for kinds of parameters; the latter for that long",
        "Megatron then has groups of their own for what is outside of blocks",
        ("schemes/parameter_groups.py mark_outside: parameter.is_embedding_or_output_parameter",),
    ),
    Hooked(
        "`max_lr`, `min_lr`, `wd_mult`, `eps` of the optimizer's groups",
        "set once, when the weights are loaded or before the first step, under such a scheme",
        "Megatron's loop takes no overrides for groups of its optimizer",
        ("training/loop/group_rules.py SchemeRates.model_built: inner.register_load_state_dict_post_hook",),
    ),
    Hooked(
        "`batch_p2p_sync` of the configuration",
        "set under `--cuda-graph-impl full_iteration`",
        "Megatron 0.19.2 keeps the value of eager runs, which waits for the device after each message",
        ("model.py _fit_pipelines_to_graphs: transformer.batch_p2p_sync",),
    ),
    Hooked(
        "`variable_seq_lengths` of the configuration",
        "set under a scheme with several residual streams, over pipeline stages",
        "stages then send the shape with each tensor: Megatron expects one stream, of its own sizes",
        ("model.py _fit_transfers_to_streams: transformer.variable_seq_lengths",),
    ),
    Hooked(
        "`has_cond_embedder` of the configuration, `pipeline_parallel` of parameters",
        "set for schemes whose layers share parameters",
        "Megatron's own sum, over stages, of the gradients of parameters that every stage has a copy of",
        (
            "model.py attach_design: transformer.has_cond_embedder",
            "schemes/shared_gains.py SharedGains.__init__: parameter.pipeline_parallel",
        ),
    ),
    Hooked(
        "`shared_embedding` and `shared` of parameters",
        "set on the copies of shared parameters",
        "a bucket of its own, which the distributed optimizer cuts alike on all stages; one copy in the gradient norm",
        (
            "schemes/shared_gains.py SharedGains.__init__: parameter.shared_embedding",
            "schemes/shared_gains.py SharedGains.__init__: parameter.shared",
        ),
    ),
    Hooked(
        "`sequence_parallel` of a parameter",
        "set on parameters of ours",
        "Megatron's mark for those whose gradients are summed over tensor-parallel ranks",
        (
            "backends/torch_norm.py _FromConfig.__init__: parameter.sequence_parallel",
            "schemes/branch_scale.py LearnedScaleJoin.__init__: self.scale.sequence_parallel",
            "schemes/shared_gains.py SharedGains.__init__: parameter.sequence_parallel",
            "schemes/streams.py own: parameter.sequence_parallel",
        ),
    ),
    Hooked(
        "`is_distributed` of a dataset provider",
        "set on functions of ours",
        "Megatron's mark for providers that every rank calls",
        (
            "* : *datasets*.is_distributed",
            "training/fine_tuning/task.py task: datasets_provider.is_distributed",
            "training/validation/fixed_set.py FixedSets.around: provide.is_distributed",
        ),
    ),
    Hooked(
        "`qk_layernorm` of the configuration of latent attention",
        "set on a copy, while one layer is resolved",
        "Megatron's reading of it without `--q-lora-rank` needs Transformer Engine",
        ("backends/torch_mla.py _FullRankQueries._resolve_qk_norm_config: plain.qk_layernorm",),
    ),
    Hooked(
        "the norm in a chain of `transformer_engine.pytorch.ops`",
        "replaced in the chain of one layer, with the same parameters; a backward fusion is registered before the others",
        "`--use-transformer-engine-op-fuser` with depth-scaled norms: a fused gamma would lose the factor",
        (
            "backends/te_norm.py scale_norm_in_chain: *",
            "backends/te_norm.py : ops.register_backward_fusion",
        ),
    ),
    Hooked(
        "`save_retain_interval`, `no_load_rng`, `ffn_hidden_size` of the arguments",
        "changed after Megatron validated them; the last one until the model is built",
        "our retention deletes alone; random states of another kind of device do not fit; Megatron's warm-up of SwiGLU "
        "fails where the width is odd",
        (
            "training/faults/checkpoint_deletion.py Retention.__init__: args.save_retain_interval",
            "training/loop/random_states.py skip_foreign: args.no_load_rng",
            "training/loop/odd_width_warm_up.py widen_warm_up*: args.ffn_hidden_size",
        ),
    ),
    Hooked(
        "`MAKEFLAGS` and `PATH` in the environment",
        "set while Megatron starts",
        "it calls `make` for a helper that the wheel has compiled already, and has no makefile for",
        ("training/before_megatron.py *: os.environ[*",),
    ),
    Hooked(
        "`CUDA_DEVICE_MAX_CONNECTIONS`, and `TORCHDYNAMO_DISABLE` without a GPU or a compiler",
        "set in the environment, where the user has not",
        "Megatron asks for the first on GPUs before generation 10; its fused functions are compiled otherwise",
        (
            "launch/devices.py set_connections: os.environ.setdefault",
            "adaptations/cpu.py prepare_environment: os.environ.setdefault",
        ),
    ),
    Hooked(
        "`RANK`, `WORLD_SIZE`, `MASTER_ADDR` and the like",
        "set in the environment, as a launcher does",
        "tools, and a run that no launcher started, are one process",
        ("launch/single_process.py launch_alone: os.environ*", "training/start/loader_preview.py _parse: os.environ"),
        "tools",
    ),
    Hooked(
        "`PET_SIGNALS_TO_HANDLE` of torchrun",
        "set in the environment, where the user has not",
        "SIGUSR1 is for the ranks too",
        ("launch/torchrun_flags.py parse: os.environ.setdefault",),
        "megatron_cod.training.torchrun",
    ),
    Hooked(
        "`error`, `print_help` of Megatron's and torchrun's parsers; `type`, `help`, `default` of Megatron's flags",
        "set on these objects",
        "errors of one line, help that can be read",
        (
            "training/flags/parser.py add_arguments: parser.*",
            "training/flags/parser.py _build: action.*",
            "training/flags/parser.py build_parser: action.default",
            "launch/torchrun_flags.py parse: parser.error",
        ),
    ),
    Hooked(
        "`torch.distributed.launcher.api.LocalElasticAgent`",
        "replaced by a subclass, in the launcher's process alone",
        "a run that was started wrongly is not started again, and the last line says why it ended",
        ("training/torchrun.py main: launcher.LocalElasticAgent",),
        "megatron_cod.training.torchrun",
    ),
    Hooked(
        "`torch.compile`, `wandb` in `sys.modules`, `wandb` of `megatron.core.timers`",
        "replaced while Megatron is imported on a CPU; the last set again with `--wandb-project`",
        "a quarter of the imports: torch's compiler, which compiles nothing there, and W&B, of which only the timers ask",
        ("adaptations/quick_imports.py *",),
    ),
    Hooked(
        "`forward` of layers; `TORCHDYNAMO_DISABLE`, `torch._dynamo.config.disable`",
        "replaced on each layer; set back",
        "`--compile-layers`: only the layers are compiled, and on a CPU the compiler is off otherwise",
        (
            "backends/compiled_layers.py compile_layers: module.forward",
            "backends/compiled_layers.py _enable_compiler: *",
        ),
    ),
    Hooked(
        "`forward` of plain layers",
        "replaced on each layer, on a CPU",
        "Megatron's checks in every call for features that few layers use, which takes a part of the step at small sizes",
        ("backends/plain_forward.py use_plain_forward: module.forward",),
    ),
    Hooked(
        "warnings and loggers of Megatron and torch",
        "filtered",
        "a dozen warnings a rank about packages that are not needed; draws on a CPU that the random tracker warns of",
        (
            "training/before_megatron.py : warnings.filterwarnings",
            "training/before_megatron.py : logging.getLogger('torch.utils.cpp_extension').setLevel",
            "adaptations/cpu.py install: logging.getLogger('megatron.core.tensor_parallel.random').addFilter",
            "data/megatron_api.py : *",
            "data/tokenizers/choice.py TokenizerChoice.build: *",
            "checkpoint/tensors.py Checkpoint.common_state: warnings.filterwarnings",
            "benchmark/__init__.py : warnings.filterwarnings",
            "benchmark/engine.py : logging.getLogger('megatron').setLevel",
            "preflight/job.py main: *",
        ),
        "all",
    ),
    Hooked(
        "`P2PCommunicator._communicate_shapes`",
        "replaced",
        "one rank of a pipeline is alone: nobody sends it the shapes",
        ("rehearsal/worker.py _give_shapes: P2PCommunicator._communicate_shapes",),
        "rehearsal",
    ),
    Hooked(
        "`torch.distributed.get_rank`",
        "replaced while datasets are made",
        "only rank 0 of Megatron's indexes them, and any rank may be the one that is rehearsed",
        ("rehearsal/worker.py _datasets: mock.patch.object",),
        "rehearsal",
    ),
    Hooked(
        "`step` of the optimizer, `finalize_model_grads_func`, `grad_scale_func`",
        "set on these objects",
        "the time of the optimizer is taken apart; the rest is what Megatron's loop sets before its first step",
        (
            "benchmark/engine.py Engine.step: self.optimizer.step",
            "benchmark/engine.py Engine.__init__: self.config.*",
        ),
        "benchmark",
    ),
    Hooked(
        "forward hooks of layers; norms of a layer",
        "registered; wrapped, in a scheme that only the benchmark has",
        "NVTX ranges for Nsight Systems; what a factor on activations would cost",
        (
            "benchmark/engine.py Engine.mark_layers: module.register_forward*",
            "benchmark/activation_scaling.py _scale_outputs: setattr layer",
        ),
        "benchmark",
    ),
    Hooked(
        "blocks of a transformers model",
        "forward hooks; `forward` replaced on one block; layers taken out",
        "the streams of a model are measured, and blocks are bypassed or removed",
        (
            "analysis/depth/traced.py TracedModel.trace: block.register_forward_hook",
            "analysis/depth/traced.py _handing_on: vars(block)['forward']",
            "analysis/depth/prune.py *",
        ),
        "megatron-cod analyze, megatron-cod prune",
    ),
)


def _rows(rows: Iterable[Sequence[str]], *titles: str) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _adapted(rows: Iterable[Adapted]) -> list[tuple[str, str]]:
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        by_reason.setdefault(row.reason, []).append(f"`{row.module}.{row.name}`")
    return [(", ".join(names), reason) for reason, names in by_reason.items()]


def tables() -> str:
    """The tables of the page, as Markdown."""
    of_runs = [(row.name, row.how, row.reason) for row in HOOKED if row.program == RUN]
    others = [(row.program, row.name, row.how, row.reason) for row in HOOKED if row.program != RUN]
    sections = {
        "In a run, on CPU processes and GPUs": _rows(of_runs, "name", "how", "why"),
        "In other programs": _rows(others, "program", "name", "how", "why"),
        "Without Transformer Engine and Apex, on CPU processes and GPUs (`adaptations/torch_only.py`)": _rows(
            _adapted(torch_only.TORCH_ADAPTED), "replaced", "why"
        ),
        "Without a GPU (`adaptations/cpu.py`)": _rows(_adapted(cpu.ADAPTED), "replaced", "why"),
    }
    return "\n\n".join(f"## {title}\n\n{table}" for title, table in sections.items())


if __name__ == "__main__":
    print(tables())
