"""The Megatron flags that come before the recipe: those of the backend, and defaults without which runs go wrong later."""

import importlib.util
from collections.abc import Sequence

from megatron_cod import cpu
from megatron_cod.backends.choice import BACKENDS, have_apex, have_transformer_engine

CHOICES = ("auto", *BACKENDS)

# The first is NVIDIA's internal metrics service. With the other two a checkpoint of the distributed optimizer can be
# loaded at another layout; Megatron's own default fails when loading, when it is too late to save otherwise. With the
# next a signal ends a run after the step at hand is done and saved (faults/signals.py). Instead of the check that the last
# leaves out, faults/nonfinite.py says where a NaN came from.
_COMMON = ["--no-one-logger", "--dist-ckpt-optim-fully-reshardable", "--ckpt-fully-parallel-save"]
_COMMON += ["--exit-signal-handler", "--no-check-for-nan-in-loss-and-grad"]
_IMPLEMENTATION = "--transformer-impl"


def given_value(flags: Sequence[str], name: str) -> str | None:
    """The value that follows the last ``name`` in flags, or None."""
    found = None
    for index, flag in enumerate(flags):
        if flag == name and index + 1 < len(flags):
            found = flags[index + 1]
        elif flag.startswith(name + "="):
            found = flag.split("=", 1)[1]
    return found


def without(flags: Sequence[str], name: str, values: int = 1) -> list[str]:
    """Flags without one that takes so many values, however it was written."""
    kept, skip = [], 0
    for flag in flags:
        if flag == name:
            skip = values + 1
        if not skip and not flag.startswith(f"{name}="):
            kept.append(flag)
        skip = max(0, skip - 1)
    return kept


def _automatic(flags: Sequence[str]) -> tuple[str, str]:
    """The backend where the user names none, and why. The fastest that is installed and has the norm."""
    if not cpu.has_cuda():
        return "torch", "no GPU found: training on CPU processes over gloo"
    if have_transformer_engine():
        return "transformer_engine", "installed"
    if have_apex() and given_value(flags, "--normalization") in (None, "LayerNorm"):
        return "apex", "Transformer Engine is not installed"
    return "torch", "Transformer Engine is not installed"


def _local_flags(backend: str) -> list[str]:
    """Megatron's ``local`` layers, without the fusions whose packages are missing."""
    flags = [_IMPLEMENTATION, "local"]
    if backend == "torch":
        flags.append("--no-persist-layer-norm")
    return flags


def _missing_fusions() -> list[str]:
    """Off, whatever the layers are made of: the output layer is Megatron's own, on Transformer Engine too."""
    # The extension of Apex that adds weight gradients to the main gradients within the product.
    missing = importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is None
    return ["--no-gradient-accumulation-fusion"] if missing else []


def default_flags(user_flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags that come before the recipe, and the lines that explain them.

    user_flags: the recipe's and the command line's; an explicit ``--transformer-impl`` or ``--backend`` there wins.
    """
    on_cpu = _missing_fusions() if cpu.has_cuda() else list(cpu.DEFAULT_FLAGS)
    implementation = given_value(user_flags, _IMPLEMENTATION)
    if implementation:
        return [*_COMMON, *on_cpu], [f"backend: {_IMPLEMENTATION} {implementation} (asked for)"]
    asked = given_value(user_flags, "--backend") or "auto"
    backend, why = _automatic(user_flags) if asked == "auto" else (asked, "asked for")
    if not cpu.has_cuda():
        of_backend = [_IMPLEMENTATION, "transformer_engine"] if backend == "transformer_engine" else []
    elif backend == "transformer_engine":
        of_backend = []  # Megatron's default
    else:
        of_backend = _local_flags(backend)
    return [*_COMMON, *on_cpu, *of_backend], [f"backend: {backend} ({why})"]
