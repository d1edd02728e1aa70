"""What needs a package besides torch: every option of Megatron's of this kind is in a table of ours, for every choice."""

import ast
import importlib.util
import re
import sys
from argparse import ArgumentParser, Namespace
from functools import cache
from pathlib import Path

import megatron.training
import pytest
from megatron.core.extensions import transformer_engine as megatrons_engine
from megatron.core.fusions import fused_layer_norm

from megatron_cod.adaptations import cpu
from megatron_cod.training.flags import packages
from megatron_cod.training.flags.defaults import CHOICES, default_flags
from megatron_cod.training.flags.packages import ON_BY_DEFAULT, ON_REQUEST, check_packages
from megatron_cod.training.flags.parser import build_parser

MEGATRON = Path(megatron.training.__file__).parents[1]
APEX = ("fused_weight_gradient_mlp_cuda", *packages.SOFTMAX.modules)
INSTALLED = {"none": (), "Apex": APEX, "Transformer Engine": ("transformer_engine",)}
INSTALLED["both"] = (*INSTALLED["Apex"], *INSTALLED["Transformer Engine"])
CHOSEN = {
    "nothing": [],
    **{f"backend {name}": ["--backend", name] for name in CHOICES},
    **{f"implementation {name}": ["--transformer-impl", name] for name in ("local", "transformer_engine")},
}


@cache
def parser() -> ArgumentParser:
    return build_parser()


@pytest.fixture
def gpu(monkeypatch):
    """A GPU, and the packages that are named, as far as choosing flags goes."""

    def have(modules: tuple[str, ...]) -> None:
        real = importlib.util.find_spec
        known = set(APEX) | {"transformer_engine"}

        def find_spec(name, *rest):
            return (object() if name in modules else None) if name in known else real(name, *rest)

        monkeypatch.setattr(cpu, "has_cuda", lambda: True)
        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        monkeypatch.setattr(megatrons_engine, "HAVE_TE", "transformer_engine" in modules)
        for name in ("HAVE_FUSED_LAYER_NORM", "HAVE_PERSIST_LAYER_NORM"):
            monkeypatch.setattr(fused_layer_norm, name, APEX[0] in modules)

    return have


def parsed(flags: list[str]) -> Namespace:
    return parser().parse_args([*default_flags(flags)[0], *flags])


@pytest.mark.parametrize("normalization", ["RMSNorm", "LayerNorm"])
@pytest.mark.parametrize("choice", CHOSEN)
@pytest.mark.parametrize("installed", INSTALLED)
def test_turns_off_what_is_missing_for_every_choice(gpu, installed, choice, normalization):
    gpu(INSTALLED[installed])
    args = parsed([*CHOSEN[choice], "--normalization", normalization])
    has_engine, has_apex = installed in ("Transformer Engine", "both"), installed in ("Apex", "both")
    assert args.apply_rope_fusion is has_engine
    assert args.gradient_accumulation_fusion is has_apex
    assert args.masked_softmax_fusion is has_apex
    assert args.bias_swiglu_fusion and args.bias_gelu_fusion and args.bias_dropout_fusion  # compiled by torch
    # The norms, by backends.choice.get_backend: torch's refuse the persistent kernel when they are built.
    local = args.transformer_impl == "local"
    apex = local and ("apex" in choice or (has_apex and normalization == "LayerNorm" and "torch" not in choice))
    assert args.no_persist_layer_norm is (local and not apex)


@pytest.mark.parametrize("installed", INSTALLED)
def test_automatic_choice_is_an_installed_backend(gpu, installed):
    gpu(INSTALLED[installed])
    found = {name: default_flags(["--normalization", name])[1][0] for name in ("RMSNorm", "LayerNorm")}
    best = {"none": ("torch", "torch"), "Apex": ("torch", "apex")}.get(installed, ("transformer_engine",) * 2)
    assert tuple(line.split()[1] for line in found.values()) == best


def test_names_a_transformer_engine_that_cannot_be_imported(gpu, monkeypatch):
    gpu(("transformer_engine",))
    monkeypatch.setattr(megatrons_engine, "HAVE_TE", False)
    line = default_flags([])[1][0]
    assert line.startswith("backend: torch (Transformer Engine is installed, but cannot be imported: ")
    args = parsed(["--backend", "transformer_engine"])
    with pytest.raises(ValueError, match="--transformer-impl transformer_engine: Transformer Engine is not installed"):
        check_packages(args)


def set_to(row: packages.OnRequest) -> Namespace:
    """The plain parse of a command line that asks for one row of the table, and for nothing else."""
    args = parser().parse_args(["--transformer-impl", "local"])
    setattr(args, row.option, row.values[0] if row.values else True)
    return args


@pytest.mark.parametrize("row", ON_REQUEST, ids=lambda row: f"{row.option} {row.package.name}")
def test_rejects_missing_packages_in_one_line(row, monkeypatch):
    args = set_to(row)
    assert hasattr(parser().parse_args([]), row.option)
    monkeypatch.setattr(packages.Package, "is_installed", lambda self: self != row.package)
    with pytest.raises(ValueError, match=re.escape(row.package.name)) as refused:
        check_packages(args)
    assert str(refused.value).startswith("--") and "\n" not in str(refused.value)
    monkeypatch.setattr(packages.Package, "is_installed", lambda _: True)
    check_packages(args)


def test_asks_for_nothing_that_is_off(monkeypatch):
    monkeypatch.setattr(packages.Package, "is_installed", lambda _: False)
    check_packages(parser().parse_args(["--transformer-impl", "local"]))


@pytest.mark.parametrize("backend", ["deepep", "hybridep", "ncclep"])
def test_refuses_the_flexible_dispatcher_without_its_package(backend):
    flags = [
        "--transformer-impl",
        "local",
        "--moe-token-dispatcher-type",
        "flex",
        "--moe-flex-dispatcher-backend",
        backend,
    ]
    with pytest.raises(ValueError, match=rf"--moe-token-dispatcher-type flex \({backend}\): .* is not installed"):
        check_packages(parser().parse_args(flags))


def test_refuses_the_precision_aware_optimizer_without_transformer_engine():
    flags = ["--transformer-impl", "local", "--use-precision-aware-optimizer"]
    with pytest.raises(
        ValueError, match=r"--use-precision-aware-optimizer without .* Transformer Engine is not installed"
    ):
        check_packages(parser().parse_args(flags))
    check_packages(parser().parse_args([*flags, "--optimizer-cpu-offload"]))


# ---- nothing that Megatron has is in no table

COMPILED = {"bias_gelu_fusion", "bias_swiglu_fusion", "bias_dropout_fusion"}
NOT_A_PACKAGE = """
perform_initialization tp_comm_bulk_wgrad tp_comm_bulk_dgrad tp_comm_overlap_ag tp_comm_overlap_rs tp_comm_split_ag
tp_comm_split_rs add_bias_linear dsa_indexer_rotate_activation dsa_indexer_scoring_relu fp8_wgrad
clone_scatter_output_in_embedding use_mamba_mem_eff_path yarn_correction_range_round_to_int add_position_embedding
bert_binary_head muon_split_qkv manual_gc_eval check_for_nan_in_loss_and_grad pin_cpu_grads pin_cpu_params
use_tokenizer_model_from_checkpoint_args ckpt_fully_parallel_save ckpt_load_validate_sharding_integrity
strict_fsdp_dtensor_load stream_ckpt_dequant align_grad_reduce use_gloo_process_groups flight_recorder_dump_on_timeout
flight_recorder_include_only_active flight_recorder_extra_dump_on_exec overlap_p2p_comm align_param_gather
use_layer_wise_param_layout gradient_reduce_div_fusion torch_fsdp2_reshard_after_forward mmap_bin_files
create_attention_mask_in_dataloader pad_vocab_size tokenizer_sentencepiece_ignore_extra_whitespaces data_sharding
log_loss_scale_to_tensorboard barrier_with_L1_time offset_sampling_seed_by_dp_rank enable_one_logger
"""
"""Switches that are on by default and import nothing, or only beside another that is asked for (tp_comm_*, fp8_*, dsa_*);
one_logger's absence is passed over by Megatron, and we turn it off."""


def test_every_switch_that_is_on_by_default_is_known():
    found = {action.dest for action in parser()._actions if action.default is True}
    assert found == {row.option for row in ON_BY_DEFAULT} | COMPILED | set(NOT_A_PACKAGE.split())


OF_OUR_OWN = {
    "numpy",
    "torch",
    "yaml",
    "packaging",
    "omegaconf",
    "psutil",
    "sentencepiece",
    "typing_extensions",
    "wandb",
}
"""In pyproject.toml or checked elsewhere (--wandb-project)."""
FOLLOWED = {  # package -> what it stands or falls with
    "apex": "Megatron falls back to torch's Adam, norms and multi-tensor functions",
    "amp_C": "as apex",
    "triton": "compiled fusions; with torch's CUDA build (environment.can_compile)",
    "transformer_engine_torch": "a part of transformer_engine",
    "emerging_optimizers": "optimizer_checks.py",
    "absl": "a logger, with a fallback",
    "tqdm": "a progress bar, with a fallback",
    "boto3": "data paths s3://, not ours",
    "botocore": "data paths s3://, not ours",
    "datasets": "Megatron's own SFT dataset, not ours",
    "wget": "Megatron's download of tokenizers, not ours",
    "modelopt": "quantisation after training, not ours",
    "one_logger": "--no-one-logger is a default of ours",
    "flash_attn": "inference alone, and Transformer Engine's business",
    "flash_attn_3": "inference",
    "flashattn_hopper": "inference",
    "flash_mla": "inference",
    "flashinfer": "inference",
    "flashinfer_cubin": "inference",
    "flashinfer_jit_cache": "inference",
    "causal_conv1d": "hybrid models, refused",
    "mamba_ssm": "hybrid models, refused",
    "cudnn": "--experimental-attention-variant, refused with our schemes",
    "fast_hadamard_transform": "--experimental-attention-variant",
    "tilelang": "--experimental-attention-variant",
    "nemo": "audio models",
    "cuda": "with pynvml, --fine-grained-activation-offloading",
    "torch_memory_saver": "reinforcement learning",
}
_ELSEWHERE = re.compile(
    r"inference|export/|multimodal|vision|T5|bert|mimo|ssm|rl/|retro|text_generation|nvshmem|resharding|distillation"
    r"|models/(hybrid|mamba)"
)
_BY_NAME = ("import_module", "find_spec", "safe_import", "safe_import_from", "__import__")


def imported(file: Path) -> set[str]:
    """Top-level names of all that a file imports anywhere."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in _BY_NAME:
            found |= {one.value for one in node.args[:1] if isinstance(one, ast.Constant)}
    return {name.split(".")[0] for name in found}


def test_every_package_that_megatron_imports_is_known():
    found: set[str] = set()
    for folder in ("core", "training"):
        for file in sorted((MEGATRON / folder).rglob("*.py")):
            if not _ELSEWHERE.search(str(file.relative_to(MEGATRON))):
                found |= imported(file)
    found -= set(sys.stdlib_module_names) | {"megatron"} | OF_OUR_OWN
    ours = {module for row in (*ON_BY_DEFAULT, *ON_REQUEST) for module in row.package.modules} | {"deep_ep"}
    assert found == (ours | set(FOLLOWED)) & found, f"in no table: {sorted(found - ours - set(FOLLOWED))}"


NOT_WITHOUT_ANOTHER = """
overlap_grad_reduce moe_grouped_gemm multi_latent_attention num_moe_experts recompute_granularity recompute_modules
rotary_interleaved
"""
"""Options beside which Megatron asks for Transformer Engine's version: each together with one that a table has."""
_FILES = ("training/arguments.py", "core/transformer/transformer_config.py")
_VERSION = re.compile(r"is_te_min_version|HAVE_TE\b")


def asked_with(file: Path) -> set[str]:
    """Options in the conditions around each check of Transformer Engine's version that raises."""
    found: set[str] = set()

    def options(node: ast.AST) -> set[str]:
        inner = [one for one in ast.walk(node) if isinstance(one, ast.Attribute)]
        return {one.attr for one in inner if ast.unparse(one.value) in ("args", "self")}

    def walk(node: ast.AST, around: list[ast.AST]) -> None:
        test = [node.test] if isinstance(node, ast.If | ast.Assert) else []
        if isinstance(node, ast.Raise | ast.Assert) and any(
            _VERSION.search(ast.unparse(one)) for one in (*around[-1:], *test)
        ):
            found.update(*(options(one) for one in (*around, *test)))
        for child in ast.iter_child_nodes(node):
            walk(child, [*around, *test] if isinstance(node, ast.If) else around)

    walk(ast.parse(file.read_text()), [])
    return found


@pytest.mark.parametrize("file", _FILES)
def test_every_option_that_asks_for_transformer_engines_version_is_known(file):
    found = asked_with(MEGATRON / file)
    ours = {row.option for row in (*ON_BY_DEFAULT, *ON_REQUEST)}
    assert found and not found - ours - set(NOT_WITHOUT_ANOTHER.split()), f"in no table: {sorted(found - ours)}"
