"""What a backend gives the layer specs, and the checkpoint keys that are the same on every backend."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from megatron.core.models.backends import BackendSpecProvider
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.multi_latent_attention import MLASelfAttentionSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from megatron_cod.schemes.overlay import Norms


@dataclass(frozen=True)
class Backend:
    """The modules that a model's layers are built from."""

    name: str
    """As ``--backend`` has it."""
    transformer_impl: str
    """The ``--transformer-impl`` that Megatron builds its specs from."""
    norms: Norms
    prepared: Callable[[TransformerLayerSubmodules, TransformerConfig], TransformerLayerSubmodules]
    """Megatron's submodules of a layer -> those that a scheme is applied to."""
    unsupported: Callable[[TransformerConfig], dict[str, bool]]
    """Flag -> whether it is set, for what no scheme of ours can do here."""
    spec_provider: Callable[[], BackendSpecProvider]
    """For the layers of multi-token prediction."""


NormBuilder = Callable[..., torch.nn.Module]


def dense_mlp(submodules: TransformerLayerSubmodules) -> Any:
    """The ``functools.partial`` that builds a layer's MLP, or None where experts are in its place."""
    builder: Any = submodules.mlp
    owner = getattr(getattr(builder, "func", None), "__self__", None)
    return builder if isinstance(owner, type) and issubclass(owner, MLP) else None


def with_mlp_of(builder: partial, owner: Any, **changed: Any) -> partial:
    """What ``dense_mlp`` has found, building an MLP of class ``owner`` with other submodules, given by name."""
    keywords = {**builder.keywords, "submodules": replace(builder.keywords["submodules"], **changed)}
    return partial(owner.as_mlp_submodule, **keywords)


def with_common_keys(submodules: TransformerLayerSubmodules) -> TransformerLayerSubmodules:
    """The same layer with norms of its own saved under the names of Transformer Engine's fused ones.

    A checkpoint then moves between backends. Megatron's own map does this for dense layers with plain attention only.
    """
    attention: Any = getattr(submodules.self_attention, "submodules", None)
    latent = isinstance(attention, MLASelfAttentionSubmodules)
    keys = {} if latent else {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
    if dense_mlp(submodules) is not None:
        keys["pre_mlp_layernorm."] = "mlp.linear_fc1.layer_norm_"
    if latent:
        keys["self_attention.q_layernorm."] = "self_attention.linear_q_up_proj.layer_norm_"
        keys["self_attention.kv_layernorm."] = "self_attention.linear_kv_up_proj.layer_norm_"
    return replace(submodules, sharded_state_dict_keys_map=keys)
