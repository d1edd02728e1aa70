"""Tiny random models of every family, and what the tests read of directories."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

BASE = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 4096,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
GEMMA = {"head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
UNCAPPED = {"attn_logit_softcapping": None, "final_logit_softcapping": None, "layer_types": ["full_attention"] * 4}
GLM = {"pad_token_id": 0, "eos_token_id": 2, "rms_norm_eps": 1.5625e-7}
# name -> (class, what differs from BASE)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama rope": ("LlamaForCausalLM", {"rope_parameters": LLAMA3, "max_position_embeddings": 131072}),
    "llama linear": (
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    "llama yarn": (
        "LlamaForCausalLM",
        {
            "max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 8.0,
                "beta_slow": 2.0,
                "truncate": False,
                "mscale": 0.7,
                "mscale_all_dim": 0.3,
            },
        },
    ),
    "llama tied": ("LlamaForCausalLM", {"tie_word_embeddings": True, "head_dim": 16}),
    "llama biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "mistral": ("MistralForCausalLM", {"head_dim": 16, "sliding_window": None, "rms_norm_eps": 1e-5}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 16}),
    "qwen3 yarn": (
        "Qwen3ForCausalLM",
        {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3 moe": (
        "Qwen3MoeForCausalLM",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
        },
    ),
    "qwen3 moe dense first": (
        "Qwen3MoeForCausalLM",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": False,
            "mlp_only_layers": [0, 1],
            "decoder_sparse_step": 1,
        },
    ),
    "phi3": ("Phi3ForCausalLM", {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
    "smollm3": (
        "SmolLM3ForCausalLM",
        {"no_rope_layers": [1, 0, 1, 0], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "granite": (
        "GraniteForCausalLM",
        {
            "tie_word_embeddings": True,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.125,
            "residual_multiplier": 0.25,
            "logits_scaling": 6.0,
        },
    ),
    "granite scaled": (
        "GraniteForCausalLM",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.21,
            "residual_multiplier": 0.5,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "gemma": ("GemmaForCausalLM", {**GEMMA, "num_key_value_heads": 1}),
    "gemma2": ("Gemma2ForCausalLM", {**GEMMA, **UNCAPPED, "query_pre_attn_scalar": 24}),
    "gemma3": ("Gemma3ForCausalLM", {**GEMMA, **UNCAPPED, "query_pre_attn_scalar": 16, "tie_word_embeddings": False}),
    "glm": ("GlmForCausalLM", {"head_dim": 16, "attention_bias": True, **GLM}),
    "glm4": ("Glm4ForCausalLM", {"head_dim": 16, "attention_bias": True, **GLM}),
    "glm4 whole heads": (
        "Glm4ForCausalLM",
        {
            **GLM,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "partial_rotary_factor": 1.0,
            },
        },
    ),
    "deepseek v2": ("DeepseekV2ForCausalLM", {**LATENT, "q_lora_rank": None}),
    "deepseek v2 yarn": ("DeepseekV2ForCausalLM", {**LATENT, "q_lora_rank": 16, "rope_parameters": YARN}),
    "deepseek v2 groups": (
        "DeepseekV2ForCausalLM",
        {
            **LATENT,
            "q_lora_rank": 16,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 3,
        },
    ),
    "deepseek v3": ("DeepseekV3ForCausalLM", {**LATENT, "q_lora_rank": 16, "n_group": 4, "topk_group": 1}),
    "deepseek v3 dense": (
        "DeepseekV3ForCausalLM",
        {**LATENT, "q_lora_rank": 16, "first_k_dense_replace": 4},
    ),
}


def make_model(name: str, folder: Path, dtype: torch.dtype = torch.float32, **save: Any) -> Path:
    """A model with weights of a trained size, gammas far from 1 and biases far from 0, saved by transformers."""
    import transformers

    kind, changes = MODELS[name]
    model_class = getattr(transformers, kind)
    config = model_class.config_class(**{**BASE, **changes})
    torch.manual_seed(sum(map(ord, name)))
    model = model_class(config)
    with torch.no_grad():
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in key:
                value.copy_((not name.startswith("gemma")) + 0.3 * torch.randn_like(value))
            elif "bias" in key:
                value.copy_(0.2 * torch.randn_like(value))
            elif "inv_freq" not in key:
                value.copy_(0.15 * torch.randn_like(value))
    model.to(dtype).save_pretrained(folder, **save)
    return folder


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a directory, by safetensors' own reader."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Equal names, dtypes and bits."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@cache
def tokens(vocab: int = 128, batch: int = 2, length: int = 32) -> Tensor:
    return torch.randint(0, vocab, (batch, length), generator=torch.Generator().manual_seed(5))


def transformers_logits(folder: Path, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[b, s, v] of the directory as stock transformers loads it."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    with torch.no_grad():
        return model.eval()(ids).logits.float()
