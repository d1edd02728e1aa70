"""Options of Megatron-Core 0.19.2, and one of ours, that need a package besides torch: one table for what is on by default,
one for the rest.

Megatron imports most of these packages late: in the first forward, in the first log line, in the first save. Here what is
on by default is turned off where its package is missing, and what a user asks for is refused before the start.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from megatron_cod.args import MegatronArgs
from megatron_cod.backends.choice import have_apex, have_transformer_engine
from megatron_cod.errors import UserError


@dataclass(frozen=True)
class Package:
    """Something to install, known by what can be imported then."""

    name: str
    modules: tuple[str, ...]
    install: str

    def is_installed(self) -> bool:
        """Whether all of its modules are there; asked without importing them."""
        if self.modules == TRANSFORMER_ENGINE.modules:
            return have_transformer_engine()
        return all(importlib.util.find_spec(module) is not None for module in self.modules)


def _pip(name: str, module: str, install: str = "") -> Package:
    return Package(name, (module,), f"pip install {install or name}")


_FROM_APEX = "build NVIDIA Apex with its CUDA extensions (PyPI's apex is another project)"
TRANSFORMER_ENGINE = _pip(
    "Transformer Engine", "transformer_engine", "--no-build-isolation transformer_engine[pytorch]"
)
WEIGHT_GRADIENTS = Package("Apex's fused_weight_gradient_mlp_cuda", ("fused_weight_gradient_mlp_cuda",), _FROM_APEX)
SOFTMAX = Package(
    "Apex's fused softmax",
    ("scaled_softmax_cuda", "scaled_masked_softmax_cuda", "scaled_upper_triang_masked_softmax_cuda"),
    _FROM_APEX,
)
_EINOPS = _pip("einops", "einops")
_NVML = _pip("nvidia-ml-py", "pynvml")
_RESILIENCY = _pip("nvidia-resiliency-ext", "nvidia_resiliency_ext")
_HUGGING_FACE = Package(
    "safetensors or transformers", ("safetensors", "transformers"), 'pip install "megatron_cod[hf]"'
)
_DEEP_EP = Package("DeepEP", ("deep_ep",), "see github.com/deepseek-ai/DeepEP")


@dataclass(frozen=True)
class OnByDefault:
    """A fusion that Megatron turns on, and that we turn off where its package is missing."""

    option: str
    """As Megatron's arguments have it."""
    package: Package
    off: str
    """The flag that turns it off."""
    fails: str
    """What Megatron does without the package where the option is left on."""


ON_BY_DEFAULT = (
    OnByDefault(
        "gradient_accumulation_fusion",
        WEIGHT_GRADIENTS,
        "--no-gradient-accumulation-fusion",
        "its own linear layers, among them the output layer of every backend, raise when they are built",
    ),
    OnByDefault("apply_rope_fusion", TRANSFORMER_ENGINE, "--no-rope-fusion", "the model's configuration raises"),
    OnByDefault(
        "masked_softmax_fusion",
        SOFTMAX,
        "--no-masked-softmax-fusion",
        "--attention-backend unfused raises ModuleNotFoundError in the first forward",
    ),
)
"""Three more fusions (bias and gelu, bias and swiglu, bias, dropout and add) are compiled by torch, see
``environment.can_compile``. The persistent LayerNorm is Apex's and never fails for want of it; torch's norms refuse it
(``torch_has_the_norms``)."""

_ANYTHING: tuple[Any, ...] = ()


@dataclass(frozen=True)
class OnRequest:
    """An option that is off by default and needs a package if it is given."""

    option: str
    package: Package
    values: tuple[Any, ...] = _ANYTHING
    """The values that need it; empty: any value."""
    flag: str = ""
    """Where it is not the option's name."""

    def asked(self, args: MegatronArgs) -> str | None:
        """The flag as the user may have written it, where the option is set."""
        value = getattr(args, self.option)
        if not (value in self.values if self.values else value):
            return None
        flag = self.flag or f"--{self.option.replace('_', '-')}"
        return flag if value is True or isinstance(value, list) else f"{flag} {value}"


ON_REQUEST = (
    OnRequest("fault_injector_ranks", _RESILIENCY),
    OnRequest("fault_injector_num_ranks", _RESILIENCY),
    OnRequest("transformer_impl", TRANSFORMER_ENGINE, ("transformer_engine", "inference_optimized")),
    OnRequest("fp8", TRANSFORMER_ENGINE, flag="--fp8-format"),
    OnRequest("fp4", TRANSFORMER_ENGINE, flag="--fp4-format"),
    OnRequest("tp_comm_overlap", TRANSFORMER_ENGINE),
    OnRequest("moe_permute_fusion", TRANSFORMER_ENGINE),
    OnRequest("moe_router_fusion", TRANSFORMER_ENGINE),
    OnRequest("moe_latent_size", TRANSFORMER_ENGINE),
    OnRequest("moe_single_grouped_weight", TRANSFORMER_ENGINE),
    OnRequest("moe_single_grouped_bias", TRANSFORMER_ENGINE),
    OnRequest("cross_entropy_fusion_impl", TRANSFORMER_ENGINE, ("te",)),
    OnRequest("use_te_activation_func", TRANSFORMER_ENGINE),
    OnRequest("use_transformer_engine_op_fuser", TRANSFORMER_ENGINE),
    OnRequest("fused_residual_rmsnorm", TRANSFORMER_ENGINE),
    OnRequest("te_precision_config_file", TRANSFORMER_ENGINE),
    OnRequest("delay_wgrad_compute", TRANSFORMER_ENGINE),
    OnRequest("overlap_dispatch_backward_with_experts_wgrad", TRANSFORMER_ENGINE),
    OnRequest("symmetric_ar_type", TRANSFORMER_ENGINE),
    OnRequest("qk_clip", TRANSFORMER_ENGINE),
    OnRequest("log_max_attention_logit", TRANSFORMER_ENGINE),
    OnRequest("cpu_offloading_num_layers", TRANSFORMER_ENGINE),
    OnRequest("fine_grained_activation_offloading", TRANSFORMER_ENGINE),
    OnRequest("fine_grained_activation_offloading", _NVML),
    OnRequest("tensor_parallel_num_weight_shards", TRANSFORMER_ENGINE),
    OnRequest("expert_tensor_parallel_num_weight_shards", TRANSFORMER_ENGINE),
    OnRequest("cuda_graph_impl", TRANSFORMER_ENGINE, ("transformer_engine",)),
    OnRequest("use_megatron_fsdp", _EINOPS),
    OnRequest("hierarchical_context_parallel_sizes", _EINOPS),
    OnRequest("log_device_memory_used", _NVML),
    OnRequest("log_energy", _NVML),
    OnRequest("enable_ft_package", _RESILIENCY),
    OnRequest("inprocess_restart", _RESILIENCY),
    OnRequest("non_persistent_ckpt_type", _RESILIENCY, ("local",)),
    OnRequest("use_kitchen_attention", _pip("nvidia-kitchen", "nvidia_kitchen")),
    OnRequest("enable_msc", _pip("multi-storage-client", "multistorageclient")),
    OnRequest(
        "adlr_autoresume", Package("NVIDIA's userlib", ("userlib",), "it is not public; --time-limit saves in time")
    ),
    OnRequest(
        "run_workload_inspector_server", Package("workload_inspector", ("workload_inspector",), "it is not public")
    ),
    OnRequest("hf_export_interval", _HUGGING_FACE),
    OnRequest("tokenizer_type", _pip("tiktoken", "tiktoken"), ("TikTokenizer",)),
    OnRequest("tokenizer_type", _pip("transformers", "transformers"), ("HuggingFaceTokenizer", "SFTTokenizer")),
)
_FLEXIBLE = {"deepep": _DEEP_EP, "hybridep": _DEEP_EP, "ncclep": TRANSFORMER_ENGINE}


def missing(args: MegatronArgs) -> list[str]:
    """A line for each given option whose package is not installed. args: the plain parse."""
    asked = [(row.asked(args), row.package) for row in ON_REQUEST]
    if args.moe_token_dispatcher_type == "flex":
        backend = args.moe_flex_dispatcher_backend
        asked.append((f"--moe-token-dispatcher-type flex ({backend})", _FLEXIBLE[backend]))
    if args.use_precision_aware_optimizer and not args.optimizer_cpu_offload:
        asked.append(("--use-precision-aware-optimizer without --optimizer-cpu-offload", TRANSFORMER_ENGINE))
    return [
        f"{flag}: {package.name} is not installed ({package.install})"
        for flag, package in asked
        if flag and not package.is_installed()
    ]


def check_packages(args: MegatronArgs) -> None:
    """UserError, naming the flag and what to install, for what would fail later. args: the plain parse."""
    lines = missing(args)
    if lines:
        raise UserError("; ".join(lines))


def missing_fusions() -> list[str]:
    """The flags that turn off the fusions that are on by default and whose packages are missing."""
    return [row.off for row in ON_BY_DEFAULT if not row.package.is_installed()]


def torch_has_the_norms(implementation: str | None, backend: str | None, normalization: str | None) -> bool:
    """Whether the model's norms will be torch's (``backends.choice.get_backend``), which have no persistent kernel.

    implementation, backend, normalization: the values of these flags; None where they are not given.
    """
    if implementation != "local":
        return False
    if backend in (None, "auto"):
        return not (have_apex() and normalization in (None, "LayerNorm"))
    return backend == "torch"
