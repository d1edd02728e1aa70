"""``--cuda-graph-impl``: which of our hooks and per-step values work in captured graphs, and which are refused.

A replay of a graph runs no Python: a number read while it was captured stays, and a hook that was captured is not called.
``local`` captures each layer's forward and backward, forward hooks of the layer among them, at the end of the first step;
``transformer_engine`` each layer in training, between two steps, and none that has a hook (layer_hooks.py);
``full_iteration`` the forward and backward of all micro-batches, and a validation's. Whatever of ours changes from step to
step or watches one is a row of ``TABLE``, read by ``check_graphs`` at the start; a test fails for what is not there
(tests/training/flags/test_cuda_graphs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron.core.optimizer import clip_grads

from megatron_cod.adaptations import cpu
from megatron_cod.args import MegatronArgs
from megatron_cod.backends.choice import have_transformer_engine
from megatron_cod.errors import UserError
from megatron_cod.training.flags.batch_sizes import batch_sizes

LOCAL, TE, FULL = "local", "transformer_engine", "full_iteration"
KINDS = (LOCAL, TE, FULL)
_FLAG = "--cuda-graph-impl"


def _always(_: Any) -> bool:
    return True


@dataclass(frozen=True)
class Row:
    """A hook or a value of the training step."""

    name: str
    works: str
    """How it comes to the eager run's numbers under the kinds that are not refused."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Kind of graph -> why not."""
    flags: tuple[str, ...] = ()
    """The flags that ask for it or change it; the first is named where it is refused. Empty: every run has it."""
    asked: Callable[[Any], bool] = _always
    """Whether Megatron's validated arguments ask for it."""
    sites: tuple[str, ...] = ()
    """Where it is hooked in or set: "file function: what"."""


_OUTSIDE = "called where gradients are zeroed, outside of every graph"
_HOOKS = "its forward and backward hooks measure layers, and a replay calls none"
_PADDED = "--moe-pad-expert-input-to-capacity with --moe-expert-capacity-factor"
_TOKENS = "shapes in a graph cannot depend on the router; give "
_BATCH = "a graph holds as many micro-batches as the step that was captured"

TABLE = (
    Row(
        "residual warm-up",
        "layers read the weight from the device; it is filled where gradients are zeroed",
        flags=("--residual-warmup-steps",),
        asked=lambda args: bool(args.residual_warmup_steps),
        sites=(
            "schemes/residual.py start_warmup: join.branch_weight",
            "schemes/residual.py set_training_step: join.branch_weight",
            "schemes/residual.py GraphWeights.__init__: join.branch_weight",
            "training/data/batches.py forward_step: curr_iteration",
            "training/loop/residual_warmup.py GraphWarmup.step_begins: curr_iteration",
            "training/loop/residual_warmup.py GraphWarmup: model_built",
            "training/loop/residual_warmup.py GraphWarmup: training_begins",
            "training/loop/residual_warmup.py GraphWarmup: step_begins",
        ),
    ),
    Row(
        "begin of a training step",
        _OUTSIDE,
        sites=(
            "training/loop/step_hooks.py Steps._hook_steps: first.zero_grad_buffer",
            "training/loop/step_hooks.py Steps._step_begins: curr_iteration",
            "training/run.py train: post_wrap_hooks steps.attach",
        ),
    ),
    Row(
        "begin of a forward step",
        "the forward step is Python under local and transformer_engine; what hangs on it is the watch for hangs alone",
        sites=("training/run.py train: pretrain steps.watch(run.task.forward_step)",),
    ),
    Row(
        "time limit",
        _OUTSIDE,
        flags=("--time-limit",),
        sites=("training/faults/time_limit.py TimeLimit: step_begins",),
    ),
    Row(
        "retention",
        _OUTSIDE,
        flags=("--keep-last-checkpoints",),
        sites=("training/faults/checkpoint_deletion.py Retention: step_begins",),
    ),
    Row(
        "exports",
        _OUTSIDE,
        flags=("--hf-export-interval",),
        sites=("training/exports/observer.py Exports: step_begins",),
    ),
    Row(
        "signals before the first step",
        _OUTSIDE,
        sites=("training/faults/signals.py UntilTraining: training_begins",),
    ),
    Row(
        "hang watch",
        "under full_iteration a step counts where gradients are zeroed, and collectives count as progress: those of a "
        "validation stand behind each replay",
        flags=("--hang-timeout",),
        sites=(
            "training/faults/handling.py Hangs: model_built",
            "training/faults/handling.py Hangs: step_begins",
            "training/faults/handling.py Hangs: forward_begins",
        ),
    ),
    Row(
        "check for NaN and infinity",
        "gradients and loss are checked after the replay; under full_iteration before the optimizer's step, and the layer "
        "is found by running the step again without graphs; with graphs of layers it is not",
        flags=("--on-nonfinite", "--most-skipped-steps"),
        asked=lambda args: args.on_nonfinite != "ignore",
        sites=(
            "training/faults/nonfinite_search.py _watched: register_forward_hook",
            "training/faults/nonfinite_search.py _hook.hook: register_hook",
            "training/faults/nonfinite_search.py _aside: config.finalize_model_grads_func",
            "training/faults/nonfinite_search.py _aside: config.timers",
            "training/loop/step_hooks.py hook_gradients: config.finalize_model_grads_func",
            "training/faults/nonfinite.py StepGuard: model_built",
            "training/faults/nonfinite.py StepGuard: wrap_forward",
            "training/faults/nonfinite.py StepGuard: step_begins",
            "training/faults/nonfinite.py StepGuard: gradients_ready",
            "training/faults/nonfinite.py before_step.checked_first: optimizer.step",
            "training/faults/nonfinite.py before_step: optimizer.step",
            "training/faults/nonfinite.py StepGuard._act: curr_iteration",
        ),
    ),
    Row(
        "depth monitor",
        "-",
        refused=dict.fromkeys(KINDS, _HOOKS),
        flags=("--depth-monitor-interval",),
        asked=lambda args: bool(args.depth_monitor_interval),
        sites=(
            "training/monitoring/depth_monitor.py DepthMonitor.step_begins: curr_iteration",
            "training/monitoring/depth_monitor.py DepthMonitor.model_built: register_forward_hook",
            "training/monitoring/depth_monitor.py DepthMonitor: model_built",
            "training/monitoring/depth_monitor.py DepthMonitor: step_begins",
            "training/monitoring/depth_monitor.py DepthMonitor: gradients_ready",
            "training/monitoring/depth_monitor.py DepthMonitor._hook: register_hook",
        ),
    ),
    Row(
        "variance of the residual stream",
        "under local and transformer_engine a validation runs without graphs; under full_iteration its replay adds up on "
        "the device",
        sites=(
            "training/loop/layer_hooks.py hook_layers: register_forward_hook",
            "training/loop/layer_hooks.py hook_layers.add: register_forward_hook",
            "training/loop/layer_hooks.py hook_layers: register_forward_pre_hook",
            "training/monitoring/stream_variance.py validate_without_graph: layer._should_call_local_cudagraph",
            "training/monitoring/stream_variance.py StreamVariance: model_built",
        ),
    ),
    Row(
        "loss and logits of a validation",
        "a validation runs without graphs, or its replay adds up on the device as the variance does; the cast of the "
        "logits is captured with it",
        sites=(
            "training/validation/evaluations.py Evaluations: model_built",
            "training/validation/evaluations.py Evaluations: step_begins",
            "training/validation/evaluations.py Evaluations: wrap_forward",
            "training/validation/evaluations.py Evaluations.step_begins: curr_iteration",
            "training/validation/evaluations.py Evaluations.step_begins: writer.is_silent",
            "training/validation/evaluations.py Evaluations.collect: writer.is_silent",
            "training/validation/fp32_logits.py Fp32Logits: model_built",
            "training/validation/fp32_logits.py raise_logits: register_forward_pre_hook",
            "training/run.py train: pretrain evaluations.collect",
        ),
    ),
    Row(
        "loss spikes, progress line, metrics, summary",
        "they take what Megatron logs after the step",
        flags=("--loss-spike-factor", "--metrics-file", "--peak-tflops"),
        sites=(
            "training/monitoring/metrics_writer.py install_metrics_writer: global_vars._GLOBAL_TENSORBOARD_WRITER",
            "training/monitoring/reporting.py Report: model_built",
            "training/faults/spikes.py SpikeWarnings: loss",
        ),
    ),
    Row(
        "step in messages and events",
        "read between steps",
        sites=(
            "training/faults/saving.py failed_saves: curr_iteration",
            "training/faults/signals.py _step: curr_iteration",
        ),
    ),
    Row(
        "data that is passed over",
        "the data is read outside of graphs",
        flags=("--rewind-to", "--rewind-skip"),
        sites=(
            "training/run.py train: pretrain passing_over(evaluations.around_sets(run.task.datasets_provider), "
            "args.save)",
        ),
    ),
    Row(
        "compiled layers",
        "-",
        refused=dict.fromkeys(KINDS, "nobody has seen the kernels of torch.compile captured"),
        flags=("--compile-layers",),
        asked=lambda args: args.compile_layers,
        sites=(
            "backends/compiled_layers.py CompiledForward._bind: module.compiled_factor",
            "backends/compiled_layers.py compile_layers: module.forward",
            "model.py model_config_from_args: pre_wrap_hooks compile_layers",
        ),
    ),
    # What is Megatron's own: it trains other numbers, or fails without naming the flags.
    Row(
        "pipeline stages",
        "under full_iteration messages are waited for on the device alone (model.py)",
        refused={LOCAL: f"Megatron-Core 0.19.2 captures no stage behind the first; give {_FLAG} {TE} or {FULL}"},
        flags=("--pipeline-model-parallel-size",),
        asked=lambda args: args.pipeline_model_parallel_size > 1,
        sites=("model.py _fit_pipelines_to_graphs: transformer.batch_p2p_sync",),
    ),
    Row(
        "batch sizes in stages",
        "a layer's graph does not depend on the number of micro-batches, while there is one stage",
        refused={TE: _BATCH, FULL: _BATCH},
        flags=("--step-batch-size-schedule", "--rampup-batch-size"),
        asked=lambda args: not batch_sizes(args).constant,
    ),
    Row(
        "loss scale that changes",
        "the scale is applied outside of a layer's graph",
        refused={FULL: "the scale of the step that was captured stays in the graph; give --loss-scale X, or --bf16"},
        flags=("--fp16",),
        asked=lambda args: args.fp16 and not args.loss_scale,
    ),
    Row(
        "experts that take as many tokens as come",
        "their part of the layer is not captured if --cuda-graph-modules excludes it",
        refused={
            **dict.fromkeys((LOCAL, TE), f"{_TOKENS}--cuda-graph-modules attn moe_router, or {_PADDED}"),
            FULL: _TOKENS + _PADDED,
        },
        flags=("--num-experts",),
        asked=lambda args: (
            bool(args.num_experts) and not args.cuda_graph_modules and not args.moe_pad_expert_input_to_capacity
        ),
    ),
    Row(
        "timers in the forward and backward",
        "they are outside of a layer's graph",
        refused={FULL: "its timers wait for the device, which a capture cannot"},
        flags=("--timing-log-level",),
        asked=lambda args: args.timing_log_level > 1,
    ),
)


def check_graphs(args: MegatronArgs) -> None:
    """UserError, naming both flags, for what does not go with CUDA graphs. args: after Megatron's validation."""
    kind = args.cuda_graph_impl
    if args.optimizer_cuda_graph and clip_grads.multi_tensor_scale_tensor_impl is None:
        raise UserError(
            "--optimizer-cuda-graph needs Transformer Engine: without it the gradient norm waits for the device, which a "
            "capture cannot"
        )
    if kind == "none":
        return
    if not cpu.has_cuda():
        raise UserError(f"{_FLAG} {kind} needs a GPU")
    if kind == TE and not have_transformer_engine():
        raise UserError(f"{_FLAG} {kind} needs Transformer Engine, which is not installed; {LOCAL} runs without")
    for row in TABLE:
        if kind in row.refused and row.asked(args):
            raise UserError(f"{row.flags[0]} does not go with {_FLAG} {kind}: {row.refused[kind]}")
