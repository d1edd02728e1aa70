"""Every hook and per-step value of ours is a row of the table of CUDA graphs; a refusal is one line with both flags."""

import argparse
import ast
from pathlib import Path
from types import SimpleNamespace

import pytest

import megatron_cod
from megatron_cod.training.flags import cuda_graphs
from megatron_cod.training.flags.cuda_graphs import FULL, KINDS, LOCAL, TABLE, TE, check_graphs
from megatron_cod.training.flags.parser import add_arguments
from megatron_cod.training.loop.observers import EVENTS

PACKAGE = Path(megatron_cod.__file__).parent
NOT_IN_TRAINING = ("analysis", "benchmark", "cli", "comparison", "data", "huggingface", "preflight", "rehearsal")
"""Folders of programs that train nothing, or nothing that lasts."""

HOOKS = {
    *("register_forward_hook", "register_forward_pre_hook", "register_hook", "register_full_backward_hook"),
    *("register_full_backward_pre_hook", "register_post_accumulate_grad_hook", "saved_tensors_hooks"),
}
LISTS = {"post_wrap_hooks", "pre_wrap_hooks"}
TOLD = set(EVENTS) - {"around_training"}
"""Events of an observer that belong to the training step, or prepare it."""

GEGLU = ("activation_func", "bias_activation_fusion")
COMPLETE_P = ("init_method_std", "init_method", "output_layer_init_method", "use_mup", "mup_output_mult")
SHARED = ("sequence_parallel", "shared", "pipeline_parallel", "shared_embedding")
ONCE = {
    # Set when a model is built, or before.
    "backends/te_norm.py scale_norm_in_chain: scaled.depth_factor",
    "backends/te_norm.py _DepthScaledOp.op_forward: ctx.depth_scaled",
    "backends/torch_rotary.py _Rotate.forward: ctx.rotations",
    *(f"backends/torch_mixed_rotary.py {name}.forward: ctx.rotation" for name in ("_RotateMixed", "_ProjectRotated")),
    "backends/plain_forward.py use_plain_forward: module.forward",
    "model.py model_config_from_args: pre_wrap_hooks use_plain_forward",
    "adaptations/cross_entropy.py _CrossEntropy.forward: ctx.dtype",
    "backends/torch_mla.py _FullRankQueries._resolve_qk_norm_config: plain.qk_layernorm",
    "backends/torch_norm.py _FromConfig.__init__: parameter.sequence_parallel",
    "model.py attach_design: config.transformer_layer_spec",
    "model.py _fit_transfers_to_streams: transformer.variable_seq_lengths",
    "model.py attach_design: post_wrap_hooks partial(refuse_wrong_depth, factor=design.factor)",
    "model.py model_config_from_args: config.rope_scaling_factor",
    "model.py attach_design: transformer.has_cond_embedder",
    *(f"schemes/shared_gains.py SharedGains.__init__: parameter.{name}" for name in SHARED),
    "model.py attach_design: pre_wrap_hooks mark_outside",
    *(f"schemes/complete_p.py configure: config.{name}" for name in COMPLETE_P),
    *(f"schemes/activation.py gate_with_gelu: config.{name}" for name in GEGLU),
    "schemes/parameter_groups.py mark_outside: parameter.is_embedding_or_output_parameter",
    "schemes/streams.py own: parameter.sequence_parallel",
    "schemes/streams.py bind_streams: join.opens",
    "schemes/streams.py open_outside: module.opens",
    "training/loop/group_rules.py SchemeRates: model_built",
    "training/loop/group_rules.py SchemeRates: training_begins",
    "schemes/init_policy.py apply_init_policy: config.output_layer_init_method",
    "schemes/depth.py bind_depth_factor: carrier.depth_factor",
    "schemes/post_norm.py PostNormJoin.take: norm.after_residual",
    "schemes/residual.py _Weighed.forward: ctx.weight",
    "schemes/residual.py start_warmup: join.warmup_steps",
    "training/run.py train: pre_wrap_hooks _forget_make",
    "training/run.py train: pretrain partial(embedding_ranks, args)",
    "training/run.py train: pretrain cfg",
    "training/run.py train: run.observers",
    "training/run.py train: run.evaluations",
    # Before the first step: which datasets are built.
    "training/data/batches.py _only: config.blend_per_split",
    "training/data/batches.py _only: config.split_matrix",
    "training/faults/time_limit.py TimeLimit.of.note: run.sigterm",
    "training/loop/random_states.py ForeignRandomStates: model_built",
    "training/loop/odd_width_warm_up.py widen_warm_up: pre_wrap_hooks restore",
    "model.py model_config_from_args: pre_wrap_hooks _to_device",
    "model.py attach_design: pre_wrap_hooks design.attach",
    # Shapes, which a captured graph has in common with its replays.
    "backends/torch_context_parallel.py _Gather.forward: ctx.widths",
    "training/faults/out_of_memory.py in_step: curr_iteration",  # read when a run has failed
    # Of command lines, processes and their output.
    "training/flags/parser.py _build: action.type",
    "training/flags/parser.py _build: action.help",
    "training/flags/parser.py build_parser: action.default",
    "planner/suggest.py changed_batch: new.global_batch_size",
    "adaptations/quick_imports.py pass_wandb_to_timers: timers.wandb",
    "training/loop/resumed_rates.py ResumedRates: model_built",
    "training/loop/resumed_rates.py match_rates: optimizer.load_state_dict",
    "training/flags/parser.py add_arguments: parser.error",
    "training/flags/parser.py add_arguments: parser.print_help",
    "training/data/batches.py : datasets_provider.is_distributed",
    "training/fine_tuning/task.py task: datasets_provider.is_distributed",
    "training/validation/fixed_set.py FixedSets.around: provide.is_distributed",
    "launch/rank_logs.py _Log._lost: _Log.warned",
    "launch/rank_logs.py report_failures: sys.excepthook",
    "training/torchrun.py Agent._invoke_run: Agent.reason",
    "training/torchrun.py main: launcher.LocalElasticAgent",
    "launch/torchrun_flags.py parse: parser.error",
}
"""What the scan finds and is no hook or value of the training step."""

FLAGS_ONCE = {
    *(
        "recipe",
        "unset",
        "import_modules",
        "norm_scheme",
        "init_policy",
        "lns_placement",
        "lns_exponent",
        "lns_router",
        "sample_data",
        "mix_ln_post_layers",
    ),
    *("complete_p_alpha", "complete_p_base_layers", "complete_p_base_hidden_size"),
    *("hyper_connections_streams", "hyper_connections_static", "mhc_streams", "mhc_iterations"),
    *("layer_rope_base", "layer_rope_scale", "layer_rope_scale_exponent", "layer_rope_angle", "layer_rope_peri"),
    *("layer_rope_angle_exponent", "gamma_init", "geglu"),
    *(
        "layerscale_init",
        "backend",
        "override_scheme_check",
        "override_model_check",
        "verify_checkpoint",
        "rank_log_dir",
    ),
    *("dry_run", "help_megatron", "help", "train_tokens", "lr_warmup_tokens", "lr_decay_tokens", "lr_wsd_decay_tokens"),
}
"""Flags of ours that are read before the first step, and make nothing that changes or watches one."""


_OF_A_START = ("self", "args", "raw", "start")
"""Names of objects that are set before the first step: arguments, their plain parse, and what a start makes of them."""


def _appended(node: ast.AST, name: str) -> list[ast.expr]:
    """What is put into the list ``name`` of another object by a statement."""
    if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Attribute) and node.target.attr == name:
        return list(node.value.elts) if isinstance(node.value, ast.List) else [node.value]
    call = node if isinstance(node, ast.Call) else None
    func = call.func if call else None
    if isinstance(func, ast.Attribute) and func.attr in ("append", "insert", "extend"):
        inside = func.value
        if isinstance(inside, ast.Attribute) and inside.attr == name and not _is_self(inside.value):
            return list(call.args[-1:])
    return []


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _observes(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Observer") for base in node.bases)


def _found(node: ast.AST, observes: bool) -> list[str]:
    """What one node hooks in, sets in another object, or reads of the step."""
    found = []
    if isinstance(node, ast.Attribute):
        found += [node.attr] if node.attr in HOOKS else []
        found += ["curr_iteration"] if node.attr == "curr_iteration" else []
    if isinstance(node, ast.Constant) and node.value == "curr_iteration":
        found.append("curr_iteration")
    if isinstance(node, ast.Assign):
        others = [one for one in node.targets if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name)]
        found += [ast.unparse(one) for one in others if one.value.id not in _OF_A_START]
    if isinstance(node, ast.FunctionDef) and node.name in TOLD and observes:
        found.append(node.name)
    for name in LISTS:
        found += [f"{name} {ast.unparse(one)}" for one in _appended(node, name)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "pretrain":
        given = [*node.args, *(one.value for one in node.keywords)]
        found += [f"pretrain {ast.unparse(one)}" for one in given if not ast.unparse(one).startswith("ModelType")]
    return found


def sites_in(text: str, file: str) -> set[str]:
    """``file function: what`` for all that a source does to the training step."""

    def walk(node: ast.AST, path: tuple[str, ...], observes: bool = False) -> set[str]:
        sites = {f"{file} {'.'.join(path)}: {what}" for what in _found(node, observes)}
        named = isinstance(node, ast.FunctionDef | ast.ClassDef)
        for child in ast.iter_child_nodes(node):
            sites |= walk(child, (*path, node.name) if named else path, _observes(node))
        return sites

    return walk(ast.parse(text), ())


def all_sites() -> set[str]:
    sites: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        file = path.relative_to(PACKAGE)
        if file.parts[0] not in NOT_IN_TRAINING:
            sites |= sites_in(path.read_text(), str(file))
    return sites


def test_every_hook_and_value_of_the_step_is_in_the_table():
    listed = {site for row in TABLE for site in row.sites}
    found = all_sites()
    assert found - listed - ONCE == set(), "classify these in cuda_graphs.TABLE, or in ONCE"
    assert (listed | ONCE) - found == set(), "these are gone"


@pytest.mark.parametrize(
    ("line", "site"),
    [
        ("layer.register_forward_hook(note)", "f: register_forward_hook"),
        ("step = args.curr_iteration + 1", "f: curr_iteration"),
        ("layer.scale = 0.5", "f: layer.scale"),
        ("class New(Observer):\n        def step_begins(self): ...", "f.New: step_begins"),
        ("config.post_wrap_hooks += [a.attach, b]", "f: post_wrap_hooks b"),
    ],
)
def test_scan_finds_a_new_one(line, site):
    assert f"new.py {site}" in sites_in(f"def f(layer, args, steps, config):\n    {line}\n", "new.py")


def test_every_flag_of_ours_is_classified():
    before = argparse.ArgumentParser()
    ours = {action.dest for action in add_arguments(before)._actions}
    rows = {flag.removeprefix("--").replace("-", "_") for row in TABLE for flag in row.flags}
    assert ours - rows - FLAGS_ONCE == set(), "name these in cuda_graphs.TABLE, or in FLAGS_ONCE"
    assert FLAGS_ONCE - ours == set(), "these are gone"


def given(kind: str, **values) -> SimpleNamespace:
    """Validated arguments of a plain run under a kind of graph."""
    plain = {
        "optimizer_cuda_graph": False,
        "residual_warmup_steps": None,
        "on_nonfinite": "stop",
        "depth_monitor_interval": None,
        "step_batch_size_schedule": None,
        "global_batch_size": 8,
        "seq_length": 16,
        "pipeline_model_parallel_size": 1,
        "loss_scale": None,
        "timing_log_level": 0,
        "num_experts": None,
        "cuda_graph_modules": [],
    }
    plain |= dict.fromkeys(("fp16", "compile_layers", "moe_pad_expert_input_to_capacity"), False)
    return SimpleNamespace(cuda_graph_impl=kind, **{**plain, **values})


REFUSED = {
    "depth monitor": (KINDS, {"depth_monitor_interval": 10}),
    "batch sizes in stages": ((TE, FULL), {"step_batch_size_schedule": "0:4 1K:8"}),
    "pipeline stages": ((LOCAL,), {"pipeline_model_parallel_size": 2}),
    "compiled layers": (KINDS, {"compile_layers": True}),
    "loss scale that changes": ((FULL,), {"fp16": True}),
    "experts that take as many tokens as come": (KINDS, {"num_experts": 4}),
    "timers in the forward and backward": ((FULL,), {"timing_log_level": 2}),
}


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(cuda_graphs.cpu, "has_cuda", lambda: True)
    monkeypatch.setattr(cuda_graphs, "have_transformer_engine", lambda: True)


def test_every_refusal_of_the_table_is_tried():
    assert {row.name: set(row.refused) for row in TABLE if row.refused} == {
        name: set(kinds) for name, (kinds, _) in REFUSED.items()
    }


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, (kinds, _) in REFUSED.items() for kind in kinds])
def test_rejects_unsupported_combinations(on_a_gpu, name, kind):
    flag = next(row.flags[0] for row in TABLE if row.name == name)
    with pytest.raises(ValueError, match=rf"^{flag} does not go with --cuda-graph-impl {kind}: [^\n]+$"):
        check_graphs(given(kind, **REFUSED[name][1]))


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_accepts_a_plain_run(on_a_gpu, kind):
    check_graphs(given(kind, residual_warmup_steps=4))
    check_graphs(given(kind, fp16=True, loss_scale=1024.0))
    check_graphs(given(kind, num_experts=4, moe_pad_expert_input_to_capacity=True))


def test_accepts_batch_sizes_in_stages_for_layers_of_one_stage(on_a_gpu):
    check_graphs(given(LOCAL, step_batch_size_schedule="0:4 1K:8"))


def test_rejects_graphs_without_gpu_or_transformer_engine(monkeypatch):
    monkeypatch.setattr(cuda_graphs.cpu, "has_cuda", lambda: False)
    with pytest.raises(ValueError, match="--cuda-graph-impl local needs a GPU"):
        check_graphs(given(LOCAL))
    monkeypatch.setattr(cuda_graphs.cpu, "has_cuda", lambda: True)
    monkeypatch.setattr(cuda_graphs, "have_transformer_engine", lambda: False)
    with pytest.raises(ValueError, match="--cuda-graph-impl transformer_engine needs Transformer Engine"):
        check_graphs(given(TE))


def test_rejects_captured_optimizer_without_transformer_engine(on_a_gpu, monkeypatch):
    monkeypatch.setattr(cuda_graphs.clip_grads, "multi_tensor_scale_tensor_impl", None)
    with pytest.raises(ValueError, match="--optimizer-cuda-graph needs Transformer Engine"):
        check_graphs(given("none", optimizer_cuda_graph=True))
