"""What ``--compile-layers`` needs, and what it has not been seen with."""

import os
import shutil
from collections.abc import Mapping

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_cod.adaptations import cpu
from megatron_cod.args import MegatronArgs
from megatron_cod.backends.choice import get_backend
from megatron_cod.common.lists import refuse_set
from megatron_cod.errors import UserError
from megatron_cod.schemes.table import get_scheme
from megatron_cod.training.before_megatron import can_compile

FLAG = "--compile-layers"


def _has_compiler(environment: Mapping[str, str]) -> bool:
    if cpu.has_cuda():
        return can_compile(environment)
    named = environment.get("CXX")
    return any(map(shutil.which, [named] if named else ["g++", "clang++"]))


def check_compiled(args: MegatronArgs, config: TransformerConfig) -> list[str]:
    """A line for the log. UserError where the layers cannot be compiled, or nobody has seen them run compiled."""
    if not args.compile_layers:
        return []
    backend = get_backend(config, None if args.backend == "auto" else args.backend).name
    if backend != "torch":
        raise UserError(
            f"{FLAG} compiles the layers of the torch backend; give --backend torch, or omit it ({backend})"
        )
    scheme = get_scheme(args.norm_scheme)
    if not scheme.one_graph:
        raise UserError(
            f"{FLAG} does not support --norm-scheme {scheme.name}, each layer of which would be compiled anew"
        )
    features = {
        "--tensor-model-parallel-size above 1": config.tensor_model_parallel_size > 1,
        "--residual-warmup-steps (a weight of each layer that changes every step)": bool(args.residual_warmup_steps),
        "--spec": args.spec,
        "--heterogeneous-layers-config-path": args.heterogeneous_layers_config_path,
        "--experimental-attention-variant": args.experimental_attention_variant,
        "--num-experts": config.num_moe_experts is not None,
        "--multi-latent-attention": config.multi_latent_attention,
        "--mtp-num-layers": bool(config.mtp_num_layers),
        "--context-parallel-size": config.context_parallel_size > 1,
        "--recompute-granularity selective": config.recompute_granularity == "selective",
        "--overlap-param-gather": args.overlap_param_gather,
        "--use-torch-fsdp2": args.use_torch_fsdp2,
        "--use-megatron-fsdp": args.use_megatron_fsdp,
        "--cpu-offloading-num-layers": config.cpu_offloading,
        "--sft": args.sft,
        "--fp16": args.fp16,
        "--hidden-dropout": config.hidden_dropout > 0,
        "--attention-dropout": config.attention_dropout > 0,
    }
    refuse_set(features, f"{FLAG} does not support", f"omit {FLAG}")
    if not _has_compiler(os.environ):
        missing = "Triton, a C compiler and Python's headers" if cpu.has_cuda() else "a C++ compiler (g++, or CXX)"
        raise UserError(f"{FLAG} needs {missing}")
    return [f"{FLAG}: the first step compiles the layers, which takes from seconds to a minute"]
