"""Initialisation policies of the output projections (attention out, MLP down)."""

from collections.abc import Callable

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_cod.schemes.table import get_scheme


def _normal(config: TransformerConfig) -> None:
    """N(0, std) everywhere: what the paper asks for with LayerNorm Scaling (METHOD, scaling-methods table)."""
    config.output_layer_init_method = config.init_method


def _scaled(config: TransformerConfig) -> None:
    """Megatron's own: std / sqrt(2 L) on output projections, which TransformerConfig has already set."""


INIT_POLICIES: dict[str, Callable[[TransformerConfig], None]] = {"normal": _normal, "scaled": _scaled}


def resolve_init_policy(scheme_name: str, asked: str | None) -> tuple[str, str]:
    """The policy to use and one line for the log that says which and why.

    asked: the user's ``--init-policy``, or None to take the scheme's default.
    """
    default = get_scheme(scheme_name).default_init
    policy = asked or default
    if policy not in INIT_POLICIES:
        raise ValueError(f"no init policy {policy!r}, there are {', '.join(INIT_POLICIES)}")
    who = "asked for by --init-policy" if asked else f"the default of {scheme_name}"
    lines = {
        "normal": "output projections start from N(0, std); Megatron's 1/sqrt(2L) scaling is off",
        "scaled": "output projections start from N(0, std/sqrt(2L)), as Megatron ships",
    }
    note = ""
    if policy != default and scheme_name == "lns":
        note = "; the paper measures LNS with it as worse than LNS without (20.79 against 20.35 at 250M)"
    return policy, f"init policy {policy} ({who}): {lines[policy]}{note}"


def apply_init_policy(config: TransformerConfig, policy: str) -> None:
    """Set the initialisers of ``config`` in place. Call it after ``TransformerConfig`` filled its defaults."""
    INIT_POLICIES[policy](config)
