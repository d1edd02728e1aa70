"""Which optimizers of Megatron-Core 0.19.2 run here; others are refused before anything is built."""

from __future__ import annotations

import importlib.util

from megatron_cod.adaptations import cpu
from megatron_cod.args import MegatronArgs
from megatron_cod.common.lists import refuse_set
from megatron_cod.errors import UserError
from megatron_cod.schemes.design import design_from_args

_OWN = ("adam", "sgd")
_RUN = (*_OWN, "muon", "lion")
_REFUSED = {
    "soap": "its state has shapes of its own, which Megatron-Core 0.19.2 cannot save",
    "adaptive_muon": "Megatron-Core 0.19.2 and emerging-optimizers 0.3 do not agree on it, and its first step fails",
    "dist_muon": "it is Megatron's old name of muon over the distributed optimizer",
}
_PACKAGE = "emerging-optimizers"


def check_optimizer(args: MegatronArgs) -> None:
    """UserError, naming the flags, for an optimizer that does not run, or not with the other flags.

    args: the plain parse of the command line.
    """
    name = args.optimizer
    _check_offload(args)
    _check_group_rules(args)
    if name in _OWN:
        return
    flag = f"--optimizer {name}"
    if name not in _RUN:
        raise UserError(f"{flag} is not supported: {_REFUSED.get(name, 'untried')}; there are {', '.join(_RUN)}")
    if importlib.util.find_spec(_PACKAGE.replace("-", "_")) is None:
        raise UserError(f"{flag} needs the package {_PACKAGE}: pip install {_PACKAGE}")
    refused = {
        "--use-distributed-optimizer (each replica then has all of the state; omit it)": (
            args.use_distributed_optimizer
        ),
        "--fp16 (--bf16 runs)": args.fp16,
        "--use-torch-fsdp2": args.use_torch_fsdp2,
        "--use-megatron-fsdp": args.use_megatron_fsdp,
        "--optimizer-cpu-offload": args.optimizer_cpu_offload,
        "--use-precision-aware-optimizer": args.use_precision_aware_optimizer,
    }
    refuse_set(refused, f"{flag} does not support")


def _check_group_rules(args: MegatronArgs) -> None:
    """UserError for flags that a norm scheme with its own rates for kinds of parameters cannot have."""
    design = design_from_args(args)
    if design.scheme.groups is None:
        return
    asked = {
        f"--optimizer {args.optimizer} (its rates are Adam's)": args.optimizer != "adam",
        "--decoupled-lr (embeddings and head have --lr)": args.decoupled_lr is not None,
        "--decoupled-min-lr (embeddings and head have --min-lr)": args.decoupled_min_lr is not None,
        "--apply-wd-to-qk-layernorm": args.apply_wd_to_qk_layernorm,
        "--optimizer-cpu-offload": args.optimizer_cpu_offload,
        "--use-torch-fsdp2": args.use_torch_fsdp2,
        "--use-megatron-fsdp": args.use_megatron_fsdp,
    }
    refused = [what for what, is_set in asked.items() if is_set]
    if refused:
        raise UserError(f"--norm-scheme {design.scheme.name} does not support {', '.join(refused)}; omit that")


def _check_offload(args: MegatronArgs) -> None:
    """UserError for a precision in which Megatron-Core 0.19.2's optimizer on the host fails by its first step."""
    if args.optimizer_cpu_offload and not args.bf16:
        given = "--fp16" if args.fp16 else "fp32"
        raise UserError(f"--optimizer-cpu-offload runs with --bf16 only, not with {given}")


def check_offload_device(args: MegatronArgs) -> None:
    """UserError where the optimizer is to be kept off a GPU that is not there. Not for the rehearsal, which needs none."""
    if args.optimizer_cpu_offload and not cpu.has_cuda():
        raise UserError("--optimizer-cpu-offload needs a GPU: without one all is on the host already; omit it")
