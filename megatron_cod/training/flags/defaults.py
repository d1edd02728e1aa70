"""Megatron flags that precede the recipe: those of the backend, and defaults that runs need later."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from megatron_cod.adaptations import cpu
from megatron_cod.backends.choice import BACKENDS, broken_transformer_engine, have_apex, have_transformer_engine
from megatron_cod.launch.devices import no_gpu
from megatron_cod.training.before_megatron import can_compile
from megatron_cod.training.flags.packages import missing_fusions, torch_has_the_norms

CHOICES = ("auto", *BACKENDS)

# The first is NVIDIA's internal metrics service. With the other two a checkpoint of the distributed optimizer can be
# loaded at another layout; Megatron's own default fails when loading, when it is too late to save otherwise. With the
# next a signal ends a run after the current step is done and saved (faults/signals.py). Instead of the check that the last
# omits, faults/nonfinite.py finds where a NaN came from.
COMMON_FLAGS = ["--no-one-logger", "--dist-ckpt-optim-fully-reshardable", "--ckpt-fully-parallel-save"]
COMMON_FLAGS += ["--exit-signal-handler", "--no-check-for-nan-in-loss-and-grad"]
"""Those that are the same on every machine."""

_IMPLEMENTATION = "--transformer-impl"
_NOT_COMPILED = "fused activations: not compiled, which takes Triton, a C compiler and Python's headers (slower, equal)"


def _choices(user_flags: Sequence[str]) -> Namespace:
    """The backend flags that the user gave; None for others."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in (_IMPLEMENTATION, "--backend", "--normalization"):
        parser.add_argument(flag)
    return parser.parse_known_args(list(user_flags))[0]


def _automatic(normalization: str | None) -> tuple[str, str]:
    """The backend where the user names none, and why. The fastest that is installed and has the norm."""
    if not cpu.has_cuda():
        return "torch", f"{no_gpu()}: training on CPU processes over gloo"
    if have_transformer_engine():
        return "transformer_engine", "installed"
    why = broken_transformer_engine() or "Transformer Engine is not installed"
    if have_apex() and normalization in (None, "LayerNorm"):
        return "apex", why
    return "torch", why


def _chosen(asked: Namespace) -> tuple[str | None, list[str], str]:
    """(the ``--transformer-impl`` it comes to, None for Megatron's own default; flags for it; the log line)."""
    if asked.transformer_impl:
        return asked.transformer_impl, [], f"backend: {_IMPLEMENTATION} {asked.transformer_impl} (asked for)"
    automatic = asked.backend in (None, "auto")
    backend, why = _automatic(asked.normalization) if automatic else (asked.backend, "asked for")
    line = f"backend: {backend} ({why})"
    if backend == "transformer_engine":
        return backend, [] if cpu.has_cuda() else [_IMPLEMENTATION, backend], line  # on a GPU it is Megatron's default
    return "local", [] if not cpu.has_cuda() else [_IMPLEMENTATION, "local"], line


def default_flags(user_flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags that come before the recipe, and the lines that explain them.

    user_flags: the recipe's and the command line's; an explicit ``--transformer-impl`` or ``--backend`` there wins. Fusions
    whose packages are missing are turned off for every choice.
    """
    asked = _choices(user_flags)
    implementation, of_backend, line = _chosen(asked)
    fusions = list(cpu.DEFAULT_FLAGS) if not cpu.has_cuda() else missing_fusions()
    if torch_has_the_norms(implementation, asked.backend, asked.normalization):
        fusions.append("--no-persist-layer-norm")
    lines = [line] if not cpu.has_cuda() or can_compile() else [line, _NOT_COMPILED]
    return [*COMMON_FLAGS, *fusions, *of_backend], lines
