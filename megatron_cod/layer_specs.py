"""Layer specs with a norm scheme applied to the spec that Megatron would build.

In an unmodified Megatron-LM checkout: ``--spec megatron_cod.layer_specs lns`` (then the scheme, plain initialisation and
the start-up depth check all come with the spec; see docs/megatron_lm.md).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_decoder_layer_specs,
    get_gpt_mtp_block_spec_for_backend,
)
from megatron.core.transformer.heterogeneous.heterogeneous_config import HeterogeneousTransformerConfig
from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionBlockSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_cod.backends.backend import Backend
from megatron_cod.backends.choice import get_backend
from megatron_cod.common.lists import flags_set
from megatron_cod.depth_map import refuse_wrong_depth
from megatron_cod.errors import UserError
from megatron_cod.schemes.design import BlockDesign, plain_design
from megatron_cod.schemes.init_policy import apply_init_policy
from megatron_cod.schemes.table import get_scheme


def unsupported_features(config: TransformerConfig, backend: Backend) -> list[str]:
    """Flags set in ``config`` that the specs of this file cannot carry yet. Stock Megatron may well."""
    features = {
        # One layer run K times has no single place in the count.
        "--mtp-use-repeated-layer": bool(config.mtp_num_layers) and config.mtp_use_repeated_layer,
        "--experimental-attention-variant": config.experimental_attention_variant is not None,
        "--heterogeneous-layers-config-path": isinstance(config, HeterogeneousTransformerConfig),
        "--hybrid-layer-pattern": bool(getattr(config, "is_hybrid_model", False)),
        **backend.unsupported(config),
    }
    return flags_set(features)


def refuse_unsupported(config: TransformerConfig, design: BlockDesign, backend: Backend) -> None:
    """UserError for what the scheme cannot do yet: refused, never built as another scheme."""
    asked = unsupported_features(config, backend)
    asked += design.scheme.unsupported(config, backend.name, design.options)
    if asked:
        raise UserError(
            f"--norm-scheme {design.scheme.name} does not support {', '.join(asked)} yet; omit that "
            f"(backend: {backend.name})"
        )


def scheme_block_spec(
    config: TransformerConfig,
    design: BlockDesign,
    vp_stage: int | None = None,
    pp_rank: int | None = None,
    backend: str | None = None,
) -> TransformerBlockSubmodules:
    """The layers of one (virtual) pipeline stage under a design, on the backend of ``config.transformer_impl``.

    vp_stage, pp_rank: None means this process's own. backend: see ``backends.choice.get_backend``.
    Raises UserError for what the scheme does not support.
    """
    chosen = get_backend(config, backend)
    refuse_unsupported(config, design, chosen)
    stock = get_gpt_decoder_block_spec(
        config,
        use_transformer_engine=chosen.transformer_impl == "transformer_engine",
        normalization=config.normalization,
        qk_l2_norm=config.qk_l2_norm,
        vp_stage=vp_stage,
        pp_rank=pp_rank,
    )
    layers = [_with_design(spec, config, design, chosen) for spec in stock.layer_specs]
    # The final norm is scaled under no scheme here.
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=design.final_norm(chosen.norms))


def _with_design(spec: ModuleSpec, config: TransformerConfig, design: BlockDesign, backend: Backend) -> ModuleSpec:
    prepared = replace(spec, submodules=backend.prepared(spec.submodules, config))
    return design.applied_to(prepared, config, backend.norms)


def scheme_mtp_spec(
    config: TransformerConfig, design: BlockDesign, vp_stage: int | None = None, backend: str | None = None
) -> MultiTokenPredictionBlockSubmodules | None:
    """The multi-token-prediction layers of this chunk under a design; None where it holds none.

    The layer inside is the model's last one; its own norms (``enorm``, ``hnorm``, the final one) are not input norms of
    a block and stay unscaled.
    """
    chosen = get_backend(config, backend)
    stock = get_gpt_decoder_layer_specs(
        config,
        use_transformer_engine=chosen.transformer_impl == "transformer_engine",
        normalization=config.normalization,
        qk_l2_norm=config.qk_l2_norm,
    )
    inner: Any = _with_design(stock[-1], config, design, chosen)
    block = get_gpt_mtp_block_spec_for_backend(
        config, TransformerBlockSubmodules(layer_specs=[inner]), chosen.spec_provider(), vp_stage=vp_stage
    )
    if block is None:
        return None
    norms = dict.fromkeys(("enorm", "hnorm", "layer_norm"), chosen.norms.plain)
    layers = [replace(spec, submodules=replace(spec.submodules, **norms)) for spec in block.layer_specs]
    return replace(block, layer_specs=layers)


@dataclass(frozen=True)
class _DepthCheck:
    """``refuse_wrong_depth`` for a design, as a hook that can be found again: the spec is requested once a chunk."""

    design: BlockDesign

    def __call__(self, model: list[torch.nn.Module]) -> list[torch.nn.Module]:
        return refuse_wrong_depth(model, self.design.factor)


def _stock_megatron_lm_spec(model_config: Any, scheme_name: str, vp_stage: int | None) -> TransformerBlockSubmodules:
    """What ``--spec`` gets: the block spec, the scheme's initialisation, and the depth check once the model is built."""
    config = getattr(model_config, "transformer", model_config)
    design = plain_design(get_scheme(scheme_name))
    if config.mtp_num_layers and not design.is_stock:
        raise UserError("--spec never reaches the layers of --mtp-num-layers; use megatron_cod.training.pretrain")
    apply_init_policy(config, design.init_policy)
    hooks = getattr(model_config, "post_wrap_hooks", None)
    if hooks is not None and not any(isinstance(hook, _DepthCheck) for hook in hooks):
        hooks.append(_DepthCheck(design))
    return scheme_block_spec(config, design, vp_stage=vp_stage)


def lns(config: Any, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """LayerNorm Scaling for ``--spec megatron_cod.layer_specs lns``. config: Megatron's GPTModelConfig."""
    return _stock_megatron_lm_spec(config, "lns", vp_stage)


def pre_ln(config: Any, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """Stock Pre-LN, on the torch backend fused, as the control: ``--spec megatron_cod.layer_specs pre_ln``."""
    return _stock_megatron_lm_spec(config, "pre_ln", vp_stage)
