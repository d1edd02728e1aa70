"""Which backend a model is built on: Transformer Engine, Apex, or torch alone."""

import importlib
import importlib.util

from megatron.core.extensions import transformer_engine as megatrons_engine
from megatron.core.fusions import fused_layer_norm
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_cod.backends.backend import Backend
from megatron_cod.backends.local_specs import APEX, TORCH
from megatron_cod.errors import UserError

BACKENDS = ("transformer_engine", "apex", "torch")


def have_transformer_engine() -> bool:
    """Whether Transformer Engine is installed, and Megatron could import it."""
    return _is_there() and megatrons_engine.HAVE_TE


def broken_transformer_engine() -> str | None:
    """Why an installed Transformer Engine is not used; None where it is, or where there is none."""
    if not _is_there() or megatrons_engine.HAVE_TE:
        return None
    try:
        importlib.import_module("transformer_engine.pytorch")
    except (ImportError, OSError, RuntimeError) as error:  # built for another torch, or a library of CUDA is missing
        return f"Transformer Engine is installed, but cannot be imported: {' '.join(str(error).split())[:200]}"
    return "Transformer Engine is installed, but Megatron could not import it"


def _is_there() -> bool:
    return importlib.util.find_spec("transformer_engine") is not None


def have_apex() -> bool:
    """Whether NVIDIA Apex's LayerNorm is installed; PyPI's ``apex`` is another project and has none."""
    return fused_layer_norm.HAVE_FUSED_LAYER_NORM or fused_layer_norm.HAVE_PERSIST_LAYER_NORM


def get_backend(config: TransformerConfig, name: str | None = None) -> Backend:
    """The backend for a configuration's ``--transformer-impl``.

    name: "torch" or "apex", which norms ``local`` is to have; None takes Apex's LayerNorm where there is one.
    Raises UserError for an implementation without our schemes, and for a package that is not installed.
    """
    if config.transformer_impl == "transformer_engine":
        if not have_transformer_engine():
            why = broken_transformer_engine() or "Transformer Engine is not installed"
            raise UserError(f"--transformer-impl transformer_engine: {why}")
        from megatron_cod.backends.te_specs import TRANSFORMER_ENGINE

        return TRANSFORMER_ENGINE
    if config.transformer_impl != "local":
        raise UserError(f"--transformer-impl {config.transformer_impl} has no norm schemes, only stock layers")
    if name == "apex" and not have_apex():
        raise UserError("--backend apex: NVIDIA Apex is not installed (PyPI's apex is another project)")
    apex = have_apex() and config.normalization == "LayerNorm" if name is None else name == "apex"
    return APEX if apex else TORCH
