"""Norms under test, and their formula."""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

H, OUT, EPS, FACTOR = 48, 40, 1e-6, 126**-0.5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def config(kind: str, zero_centered: bool = False, **more) -> TransformerConfig:
    return TransformerConfig(
        num_layers=2,
        hidden_size=H,
        ffn_hidden_size=64,
        num_attention_heads=4,
        normalization=kind,
        layernorm_epsilon=EPS,
        layernorm_zero_centered_gamma=zero_centered,
        use_cpu_initialization=DEVICE == "cpu",
        **{"add_bias_linear": False, "gated_linear_unit": True, "activation_func": torch.nn.functional.silu, **more},
    )


def linear(cfg: TransformerConfig) -> torch.nn.Module:
    from megatron_cod.backends.te_linear import DepthScaledTELayerNormColumnParallelLinear

    return DepthScaledTELayerNormColumnParallelLinear(
        H,
        OUT,
        config=cfg,
        init_method=torch.nn.init.normal_,
        gather_output=False,
        bias=False,
        skip_bias_add=False,
        is_expert=False,
    )


def norm(cfg: TransformerConfig) -> torch.nn.Module:
    from megatron_cod.backends.te_norm import depth_scaled_te_norm

    return depth_scaled_te_norm(cfg, H, EPS)


def relative(ours: torch.Tensor, right: torch.Tensor) -> float:
    """Largest difference over the largest element."""
    return float((ours.detach().double().cpu() - right.detach()).abs().max() / right.detach().abs().max())
