"""Layer specs with a norm scheme laid over whatever Megatron would build.

In an unmodified Megatron-LM checkout: ``--spec megatron_cod.layer_specs lns`` (then the scheme, plain initialisation and
the start-up depth check all come with the spec; see docs/megatron_lm.md).
"""

from dataclasses import replace
from typing import Any

from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_decoder_layer_specs,
    get_gpt_mtp_block_spec_for_backend,
)
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.heterogeneous.heterogeneous_config import HeterogeneousTransformerConfig
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionBlockSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from megatron_cod.backends.torch_attention import SDPACoreAttention
from megatron_cod.backends.torch_mla import torch_mla
from megatron_cod.backends.torch_norm import TORCH_NORMS, torch_norm
from megatron_cod.depth_map import refuse_wrong_depth
from megatron_cod.schemes.design import BlockDesign
from megatron_cod.schemes.init_policy import apply_init_policy
from megatron_cod.schemes.table import SCHEMES, get_scheme


def unsupported_features(config: TransformerConfig) -> list[str]:
    """Flags set in ``config`` that the specs of this file cannot carry yet. Stock Megatron may well."""
    recompute = config.recompute_granularity == "selective" and "layernorm" in (config.recompute_modules or [])
    latent_split = config.multi_latent_attention and config.tensor_model_parallel_size > 1
    features = {
        f"--transformer-impl {config.transformer_impl}": config.transformer_impl != "local",
        # One layer run K times has no single place in the count.
        "--mtp-use-repeated-layer": bool(config.mtp_num_layers) and config.mtp_use_repeated_layer,
        "--experimental-attention-variant": config.experimental_attention_variant is not None,
        "--heterogeneous-layers-config-path": isinstance(config, HeterogeneousTransformerConfig),
        "--hybrid-layer-pattern": bool(getattr(config, "is_hybrid_model", False)),
        # The attention of torch sees one rank's part of the sequence only.
        "--context-parallel-size > 1": config.context_parallel_size > 1,
        # Without Transformer Engine some gradients of Megatron's attention are wrong there; see backends/torch_mla.py.
        "--multi-latent-attention under tensor parallelism without --sequence-parallel": (
            latent_split and not config.sequence_parallel
        ),
        # Megatron's own code for it fails with a NameError where Transformer Engine is missing.
        "--recompute-modules layernorm (without Transformer Engine)": recompute and not HAVE_TE,
    }
    return [flag for flag, is_set in features.items() if is_set]


def refuse_unsupported(config: TransformerConfig, design: BlockDesign) -> None:
    """ValueError for what the scheme cannot do yet: refused, never built as another scheme."""
    asked, scheme = unsupported_features(config), design.scheme
    if asked:
        impl = config.transformer_impl
        others = [row.name for row in SCHEMES.values() if impl in row.backends]
        hint = f" ({impl} runs {', '.join(others)})" if impl not in scheme.backends else ""
        raise ValueError(f"--norm-scheme {scheme.name} does not support {', '.join(asked)} yet; leave that out{hint}")


def _with_torch_backend(
    submodules: TransformerLayerSubmodules, config: TransformerConfig
) -> TransformerLayerSubmodules:
    """The same submodules with fused attention, and with norms that work where Megatron's torch norm refuses."""
    attention: Any = submodules.self_attention
    inner: Any = getattr(attention, "submodules", None)
    changed: dict[str, Any] = {}
    if inner is not None:
        if inner.core_attention is DotProductAttention and config.attention_backend != AttnBackend.unfused:
            changed["core_attention"] = SDPACoreAttention
        for name in ("q_layernorm", "k_layernorm", "kv_layernorm"):
            if getattr(inner, name, None) is WrappedTorchNorm:
                changed[name] = torch_norm
    if changed:
        attention = replace(attention, submodules=replace(inner, **changed))
    if getattr(attention, "module", None) is MLASelfAttention:
        attention = replace(attention, module=torch_mla(config))
    norms = {
        name: torch_norm
        for name in ("input_layernorm", "pre_mlp_layernorm")
        if getattr(submodules, name) is WrappedTorchNorm
    }
    return replace(submodules, self_attention=attention, **norms)


def scheme_block_spec(
    config: TransformerConfig, design: BlockDesign, vp_stage: int | None = None, pp_rank: int | None = None
) -> TransformerBlockSubmodules:
    """The layers of one (virtual) pipeline stage under a design, on the torch backend.

    vp_stage, pp_rank: None means this process's own. Raises ValueError for what the scheme does not support.
    """
    refuse_unsupported(config, design)
    stock = get_gpt_decoder_block_spec(
        config,
        use_transformer_engine=False,
        normalization=config.normalization,
        qk_l2_norm=config.qk_l2_norm,
        vp_stage=vp_stage,
        pp_rank=pp_rank,
    )
    # The final norm is scaled under no scheme here; only its ability to run under SP may change.
    final = torch_norm if stock.layer_norm is WrappedTorchNorm else stock.layer_norm
    layers = [_laid_over(spec, config, design) for spec in stock.layer_specs]
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=final if design.scheme.final_norm else None)


def _laid_over(spec: ModuleSpec, config: TransformerConfig, design: BlockDesign) -> ModuleSpec:
    on_torch = replace(spec, submodules=_with_torch_backend(spec.submodules, config))
    return design.laid_over(on_torch, config, TORCH_NORMS)


def scheme_mtp_spec(
    config: TransformerConfig, design: BlockDesign, vp_stage: int | None = None
) -> MultiTokenPredictionBlockSubmodules | None:
    """The multi-token-prediction layers of this chunk under a design; None where it holds none.

    The layer inside is the model's last one; its own norms (``enorm``, ``hnorm``, the final one) are not input norms of
    a block and stay unscaled.
    """
    stock = get_gpt_decoder_layer_specs(
        config, use_transformer_engine=False, normalization=config.normalization, qk_l2_norm=config.qk_l2_norm
    )
    inner: Any = _laid_over(stock[-1], config, design)
    block = get_gpt_mtp_block_spec_for_backend(
        config, TransformerBlockSubmodules(layer_specs=[inner]), LocalSpecProvider(), vp_stage=vp_stage
    )
    if block is None:
        return None
    norms = dict.fromkeys(("enorm", "hnorm", "layer_norm"), torch_norm)
    layers = [replace(spec, submodules=replace(spec.submodules, **norms)) for spec in block.layer_specs]
    return replace(block, layer_specs=layers)


def _stock_megatron_lm_spec(model_config: Any, scheme_name: str, vp_stage: int | None) -> TransformerBlockSubmodules:
    """What ``--spec`` gets: the block spec, the scheme's initialisation, and the depth check once the model is built."""
    config = getattr(model_config, "transformer", model_config)
    scheme = get_scheme(scheme_name)
    design = BlockDesign(scheme, init_policy=scheme.default_init)
    if config.mtp_num_layers and not design.is_stock:
        raise ValueError("--spec never reaches the layers of --mtp-num-layers; use megatron_cod.training.pretrain")
    apply_init_policy(config, design.init_policy)
    hooks = getattr(model_config, "post_wrap_hooks", None)
    if hooks is not None and refuse_wrong_depth not in hooks:
        hooks.append(refuse_wrong_depth)
    return scheme_block_spec(config, design, vp_stage=vp_stage)


def lns(config: Any, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """LayerNorm Scaling for ``--spec megatron_cod.layer_specs lns``. config: Megatron's GPTModelConfig."""
    return _stock_megatron_lm_spec(config, "lns", vp_stage)


def pre_ln(config: Any, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """Stock Pre-LN on the torch backend (fused attention), as the control: ``--spec megatron_cod.layer_specs pre_ln``."""
    return _stock_megatron_lm_spec(config, "pre_ln", vp_stage)
