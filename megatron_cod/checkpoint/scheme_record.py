"""What a checkpoint's arguments record of its weights: the function that they have, and where they were trained."""

import argparse
from typing import Any

from megatron_cod import __version__
from megatron_cod.adaptations import cpu
from megatron_cod.args import MegatronArgs
from megatron_cod.schemes.design import BlockDesign, design_from_args
from megatron_cod.schemes.options import read_options
from megatron_cod.schemes.table import SCHEMES, STOCK, get_scheme


def record(args: MegatronArgs) -> None:
    """Put on Megatron's ``args``, which every checkpoint keeps, what the weights do not show."""
    design = design_from_args(args)
    args.init_policy = design.init_policy
    for name, value in design.identity(args).items():
        setattr(args, name, value)
    args.megatron_cod_version = __version__
    args.device_kind = device_kind()


def device_kind() -> str:
    """What this machine trains on: ``cuda`` or ``cpu``. Their random number generators have states of other sizes."""
    return "cuda" if cpu.has_cuda() else "cpu"


def recorded_device_kind(saved: argparse.Namespace) -> str:
    """What a checkpoint was trained on. Earlier versions did not record it, but the backend of the collectives shows it."""
    backend = getattr(saved, "distributed_backend", "nccl")
    return getattr(saved, "device_kind", "cpu" if backend == "gloo" else "cuda")


def recorded_identity(saved: argparse.Namespace) -> dict[str, Any]:
    """The scheme that a checkpoint records. One that records none is stock Megatron's: pre_ln.

    A checkpoint that does not record its scheme's exponent has the paper's.
    """
    name = getattr(saved, "norm_scheme", STOCK)
    if name not in SCHEMES:
        return {"norm_scheme": name}
    scheme = get_scheme(name)
    found = BlockDesign(scheme, read_options(scheme.options, saved)).identity(saved)
    return {name: getattr(saved, name, default) for name, default in found.items()}
