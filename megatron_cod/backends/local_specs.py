"""Megatron's ``local`` layer specs made fast and complete: attention of torch, norms of torch or of Apex."""

from collections.abc import Collection
from dataclasses import fields, replace
from typing import Any

from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from megatron_cod.backends.apex_norm import apex_norm, deferred_apex_norm, depth_scaled_apex_norm
from megatron_cod.backends.backend import Backend, NormBuilder, dense_mlp, with_common_keys, with_mlp_of
from megatron_cod.backends.torch_attention import SDPACoreAttention
from megatron_cod.backends.torch_linear import TORCH_LINEARS
from megatron_cod.backends.torch_mla import torch_mla
from megatron_cod.backends.torch_mlp import TorchMLP
from megatron_cod.backends.torch_norm import deferred_torch_norm, depth_scaled_torch_norm, torch_norm
from megatron_cod.backends.torch_self_attention import TorchSelfAttention
from megatron_cod.errors import UserError
from megatron_cod.schemes.overlay import Norms

INPUT_NORMS = {"attention": "input_layernorm", "mlp": "pre_mlp_layernorm"}


def _unsupported(config: TransformerConfig) -> dict[str, bool]:
    recompute = config.recompute_granularity == "selective" and "layernorm" in (config.recompute_modules or [])
    latent_split = config.multi_latent_attention and config.tensor_model_parallel_size > 1
    return {
        # Without Transformer Engine some gradients of Megatron's attention are wrong there; see backends/torch_mla.py.
        "--multi-latent-attention under tensor parallelism without --sequence-parallel": (
            latent_split and not config.sequence_parallel
        ),
        # Megatron's own code for it fails with a NameError where Transformer Engine is missing.
        "--recompute-modules layernorm (without Transformer Engine)": recompute and not HAVE_TE,
    }


def _replaced(submodules: TransformerLayerSubmodules, norm: NormBuilder, branches: Collection[str]) -> Any:
    """Another norm before each of the branches; UserError where Megatron's spec has none."""
    names = [INPUT_NORMS[branch] for branch in branches]
    missing = [name for name in names if getattr(submodules, name) is IdentityOp]
    if missing:
        raise UserError(f"Megatron's local spec has no {' and no '.join(missing)}")
    return replace(submodules, **dict.fromkeys(names, norm))


def _linears(submodules: Any) -> dict[str, type]:
    """This backend's linear for each of Megatron's, by the name of its place."""
    places = {field.name: getattr(submodules, field.name) for field in fields(submodules)}
    return {name: TORCH_LINEARS[linear] for name, linear in places.items() if linear in TORCH_LINEARS}


def _backend(name: str, plain: NormBuilder, depth_scaled: NormBuilder, deferred: NormBuilder) -> Backend:
    def prepared(submodules: TransformerLayerSubmodules, config: TransformerConfig) -> TransformerLayerSubmodules:
        """The same submodules with fused attention and SwiGLU, and with this backend's norms in all places."""
        attention: Any = submodules.self_attention
        inner: Any = getattr(attention, "submodules", None)
        if inner is not None:
            changed: dict[str, Any] = {}
            if inner.core_attention is DotProductAttention and config.attention_backend != AttnBackend.unfused:
                changed["core_attention"] = SDPACoreAttention
            # Norms of queries and keys may be identities or L2 norms; only Megatron's norm is replaced.
            for norm in ("q_layernorm", "k_layernorm", "kv_layernorm"):
                if getattr(inner, norm, None) is submodules.input_layernorm:
                    changed[norm] = plain
            attention = replace(attention, submodules=replace(inner, **changed))
        if getattr(attention, "module", None) is MLASelfAttention:
            attention = replace(attention, module=torch_mla(config))
        elif getattr(attention, "module", None) is SelfAttention:
            inner = attention.submodules
            attention = replace(attention, module=TorchSelfAttention, submodules=replace(inner, **_linears(inner)))
        mlp: Any = dense_mlp(submodules)
        if mlp is not None and mlp.func.__self__ is MLP:
            submodules = replace(submodules, mlp=with_mlp_of(mlp, TorchMLP, **_linears(mlp.keywords["submodules"])))
        norms = _replaced(submodules, plain, INPUT_NORMS)
        return with_common_keys(replace(norms, self_attention=attention))

    return Backend(
        name=name,
        transformer_impl="local",
        norms=Norms(
            plain=plain,
            depth_scaled=lambda submodules, branches: _replaced(submodules, depth_scaled, branches),
            deferred=lambda submodules: _replaced(submodules, deferred, INPUT_NORMS),
        ),
        prepared=prepared,
        unsupported=_unsupported,
        spec_provider=LocalSpecProvider,
    )


TORCH = _backend("torch", torch_norm, depth_scaled_torch_norm, deferred_torch_norm)
APEX = _backend("apex", apex_norm, depth_scaled_apex_norm, deferred_apex_norm)
