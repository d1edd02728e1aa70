"""Which of Transformer Engine's modules in a layer spec carry what. Import this only where it is installed."""

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

from megatron.core.extensions.transformer_engine import (
    TEColumnParallelLinear,
    TEFusedMLP,
    TEFusedMLPWithGroupedLinear,
    TELayerNormColumnParallelLinear,
    TENorm,
)
from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from megatron_cod.backends.backend import Backend, NormBuilder, dense_mlp, with_common_keys, with_mlp_of
from megatron_cod.backends.te_linear import (
    DepthScaledTEFusedMLP,
    DepthScaledTEFusedMLPWithGroupedLinear,
    DepthScaledTELayerNormColumnParallelLinear,
)
from megatron_cod.backends.te_norm import (
    deferred_te_norm,
    depth_scaled_te_norm,
    depth_scaled_te_norm_with_residual,
    te_norm,
    te_norm_with_residual,
)
from megatron_cod.errors import UserError
from megatron_cod.schemes.overlay import Norms

_SCALED_MLP: dict[type, type] = {
    TEFusedMLP: DepthScaledTEFusedMLP,
    TEFusedMLPWithGroupedLinear: DepthScaledTEFusedMLPWithGroupedLinear,
}


_SCALED_NORM: dict[Any, NormBuilder] = {
    te_norm: depth_scaled_te_norm,
    te_norm_with_residual: depth_scaled_te_norm_with_residual,
}


def _plain_norm(megatrons: Any) -> Any:
    """Our norm for one of Megatron's; the one that may fuse the residual is an adapter around TENorm."""
    if megatrons is TENorm:
        return te_norm
    return te_norm_with_residual if getattr(megatrons, "__name__", "") == "_TENormWithResidual" else megatrons


def _with_input_norm(submodules: TransformerLayerSubmodules, norm: NormBuilder, **changed: Any) -> Any:
    """The attention without its fused norm: a norm before it, and other linears in place of the fused ones."""
    attention: Any = submodules.self_attention
    inner = replace(attention.submodules, **changed)
    return replace(submodules, input_layernorm=norm, self_attention=replace(attention, submodules=inner))


def _scale_attention(submodules: TransformerLayerSubmodules) -> TransformerLayerSubmodules:
    inner: Any = submodules.self_attention.submodules  # type: ignore[union-attr]
    if submodules.input_layernorm is not IdentityOp:
        return replace(submodules, input_layernorm=_SCALED_NORM[submodules.input_layernorm])
    if getattr(inner, "linear_qkv", None) is TELayerNormColumnParallelLinear:
        attention: Any = submodules.self_attention
        inner = replace(inner, linear_qkv=DepthScaledTELayerNormColumnParallelLinear)
        return replace(submodules, self_attention=replace(attention, submodules=inner))
    if getattr(inner, "linear_qkv_down_proj", None) is TELayerNormColumnParallelLinear:
        # Megatron's fused latent attention checks the exact class of its linears: the norm is in front of it.
        scaled = _with_input_norm(submodules, depth_scaled_te_norm, linear_qkv_down_proj=TEColumnParallelLinear)
        return replace(scaled, sharded_state_dict_keys_map={})  # which named the fused norm what it is called now
    raise UserError("found no input norm of the attention in Megatron's Transformer Engine spec")


def _scale_mlp(submodules: TransformerLayerSubmodules) -> TransformerLayerSubmodules:
    if submodules.pre_mlp_layernorm is not IdentityOp:
        return replace(submodules, pre_mlp_layernorm=_SCALED_NORM[submodules.pre_mlp_layernorm])
    mlp = dense_mlp(submodules)
    if mlp is None or mlp.keywords["submodules"].linear_fc1 is not TELayerNormColumnParallelLinear:
        raise UserError("found no input norm of the MLP in Megatron's Transformer Engine spec")
    owner = mlp.func.__self__
    scaled = with_mlp_of(mlp, _SCALED_MLP.get(owner, owner), linear_fc1=DepthScaledTELayerNormColumnParallelLinear)
    return replace(submodules, mlp=scaled)


def _depth_scaled(submodules: TransformerLayerSubmodules, branches: Collection[str]) -> TransformerLayerSubmodules:
    if "attention" in branches:
        submodules = _scale_attention(submodules)
    return _scale_mlp(submodules) if "mlp" in branches else submodules


def _deferred(submodules: TransformerLayerSubmodules) -> TransformerLayerSubmodules:
    """Norms of their own, since a Post-LN block applies them after the sum; nothing is fused with them."""
    inner: Any = submodules.self_attention.submodules  # type: ignore[union-attr]
    if submodules.input_layernorm is not IdentityOp:
        submodules = replace(submodules, input_layernorm=deferred_te_norm)
    elif hasattr(inner, "linear_qkv"):
        submodules = _with_input_norm(submodules, deferred_te_norm, linear_qkv=TEColumnParallelLinear)
    else:
        submodules = _with_input_norm(submodules, deferred_te_norm, linear_qkv_down_proj=TEColumnParallelLinear)
    mlp = dense_mlp(submodules)
    if mlp is not None:
        if mlp.func.__self__ in _SCALED_MLP:
            raise UserError("--use-transformer-engine-op-fuser needs a norm before the MLP; this scheme has it behind")
        submodules = replace(submodules, mlp=with_mlp_of(mlp, mlp.func.__self__, linear_fc1=TEColumnParallelLinear))
    return with_common_keys(replace(submodules, pre_mlp_layernorm=deferred_te_norm))


def _prepared(submodules: TransformerLayerSubmodules, config: TransformerConfig) -> TransformerLayerSubmodules:
    """With our norms in all places, and the op fuser's MLP if requested: Megatron's block specs omit it."""
    attention: Any = submodules.self_attention
    inner = attention.submodules
    in_attention = {
        name: _plain_norm(getattr(inner, name))
        for name in ("q_layernorm", "k_layernorm", "kv_layernorm")
        if hasattr(inner, name)
    }
    submodules = replace(
        submodules,
        input_layernorm=_plain_norm(submodules.input_layernorm),
        pre_mlp_layernorm=_plain_norm(submodules.pre_mlp_layernorm),
        self_attention=replace(attention, submodules=replace(inner, **in_attention)),
    )
    mlp = dense_mlp(submodules)
    if mlp is None or not config.use_transformer_engine_op_fuser:
        return submodules
    owner = TEFusedMLPWithGroupedLinear if config.use_grouped_gemm_for_dense_mlp else TEFusedMLP
    return replace(submodules, mlp=partial(owner.as_mlp_submodule, **mlp.keywords))


def _unsupported(config: TransformerConfig) -> dict[str, bool]:
    # Both have norms that are not known here, or read gamma outside the norm's forward.
    return {"--kitchen-config-file": config.use_kitchen, "--inference-fuse-tp-communication": _fuses_inference(config)}


def _fuses_inference(config: TransformerConfig) -> bool:
    return bool(getattr(config, "inference_fuse_tp_communication", False))


TRANSFORMER_ENGINE = Backend(
    name="transformer_engine",
    transformer_impl="transformer_engine",
    norms=Norms(plain=te_norm, depth_scaled=_depth_scaled, deferred=_deferred),
    prepared=_prepared,
    unsupported=_unsupported,
    spec_provider=TESpecProvider,
)
