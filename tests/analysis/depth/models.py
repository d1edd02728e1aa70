"""Tiny models of transformers, one a family."""

import torch
import transformers

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 61,
    "max_position_embeddings": 64,
    "pad_token_id": None,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
}
FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"num_key_value_heads": 2}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"num_key_value_heads": 2, "sliding_window": 8}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"num_key_value_heads": 2, "head_dim": 8}),
    "deepseek v2": (
        *("DeepseekV2Config", "DeepseekV2ForCausalLM"),
        {"num_key_value_heads": 4, "first_k_dense_replace": 1, "n_shared_experts": 1, **LATENT},
    ),
    "deepseek v3": (
        *("DeepseekV3Config", "DeepseekV3ForCausalLM"),
        {"num_key_value_heads": 4, "first_k_dense_replace": 1, "n_shared_experts": 1, **LATENT},
    ),
    # Not of the paper: another code base, where blocks are called otherwise.
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
}


def build(family: str):
    config, model, more = FAMILIES[family]
    torch.manual_seed(0)
    sizes = {**SMALL, **more}
    if family == "gpt2":
        sizes = {"vocab_size": 61, **more}
    return getattr(transformers, model)(getattr(transformers, config)(**sizes)).eval()


def text(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 61, (batch, length), generator=torch.Generator().manual_seed(seed))
