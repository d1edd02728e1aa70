"""Config layouts of published models that are imported.

Compared with public copies: GLM-4-9B, Granite 3.1-2b, Gemma, SmolLM3, Qwen3-30B-A3B (its sizes). From memory: the others.
"""

from typing import Any

_GLM = {
    "architectures": ["Glm4ForCausalLM"],
    "model_type": "glm4",
    "attention_dropout": 0.0,
    "eos_token_id": [151329, 151336, 151338],
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 2,
    "pad_token_id": 151329,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 151552,
}
_GRANITE = {
    "architectures": ["GraniteForCausalLM"],
    "model_type": "granite",
    "attention_bias": False,
    "attention_dropout": 0.1,
    "embedding_multiplier": 12.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
_GRANITE_2B = {
    **_GRANITE,
    "attention_multiplier": 0.015625,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "logits_scaling": 8.0,
}
_GRANITE_8B = {
    **_GRANITE,
    "attention_multiplier": 0.0078125,
    "hidden_size": 4096,
    "intermediate_size": 12800,
    "logits_scaling": 16.0,
}
IMPORTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "GLM-4-9B-0414": (
        {
            **_GLM,
            "attention_bias": True,
            "hidden_size": 4096,
            "intermediate_size": 13696,
            "num_attention_heads": 32,
            "num_hidden_layers": 40,
        },
        {"norm-scheme": "sandwich_ln", "rotary-percent": 0.5, "add-qkv-bias": True, "kv-channels": 128},
    ),
    "glm-4-9b-chat-hf": (
        {
            **_GLM,
            "architectures": ["GlmForCausalLM"],
            "model_type": "glm",
            "attention_bias": True,
            "hidden_size": 4096,
            "intermediate_size": 13696,
            "max_position_embeddings": 131072,
            "num_attention_heads": 32,
            "num_hidden_layers": 40,
            "rms_norm_eps": 1.5625e-07,
            "rope_theta": 5000000.0,
        },
        {"norm-scheme": "pre_ln", "rotary-percent": 0.5, "norm-epsilon": 1.5625e-07, "rotary-base": 5000000},
    ),
    "GLM-4-32B-0414": (
        {
            **_GLM,
            "attention_bias": False,
            "hidden_size": 6144,
            "intermediate_size": 23040,
            "num_attention_heads": 48,
            "num_hidden_layers": 61,
        },
        {"norm-scheme": "sandwich_ln", "rotary-percent": 0.5, "add-qkv-bias": None, "num-query-groups": 2},
    ),
    "granite-3.0-2b-base": (
        {**_GRANITE_2B, "max_position_embeddings": 4096, "rope_theta": 10000.0, "vocab_size": 49152},
        {"use-mup": True, "mup-base-hidden-size": 2048, "mup-embedding-mult": 12.0, "mup-output-mult": 0.125},
    ),
    "granite-3.1-2b-instruct": (
        {**_GRANITE_2B, "max_position_embeddings": 131072, "rope_theta": 5000000.0, "vocab_size": 49155},
        {"mup-attn-scale-power": 1.0, "mup-base-head-dim": None, "rotary-base": 5000000},
    ),
    "granite-3.3-8b-instruct": (
        {**_GRANITE_8B, "max_position_embeddings": 131072, "rope_theta": 10000000.0, "vocab_size": 49159},
        {"mup-attn-scale-power": 1.0, "mup-base-head-dim": None, "mup-output-mult": 0.0625, "swiglu": True},
    ),
}
"""Model -> (config.json, keys of its recipe; None: absent)."""
GEMMA = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
_GEMMA_1 = {
    **GEMMA,
    "architectures": ["GemmaForCausalLM"],
    "model_type": "gemma",
    "max_position_embeddings": 8192,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
}
IMPORTED |= {
    "gemma-2b": (
        {
            **_GEMMA_1,
            "hidden_act": "gelu",
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "num_attention_heads": 8,
            "num_hidden_layers": 18,
            "num_key_value_heads": 1,
        },
        {"geglu": True, "apply-layernorm-1p": True, "mup-embedding-mult": 2048**0.5, "num-query-groups": 1},
    ),
    "gemma-7b": (
        {
            **_GEMMA_1,
            "hidden_act": "gelu",
            "hidden_size": 3072,
            "intermediate_size": 24576,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 16,
        },
        {"geglu": True, "swiglu": True, "kv-channels": 256, "untie-embeddings-and-output-weights": False},
    ),
}
_SMOLLM3 = {
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 65536,
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 5000000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
_QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "vocab_size": 151936,
}
IMPORTED |= {
    "SmolLM3-3B": (
        _SMOLLM3,
        {"no-rope-freq": f"[{','.join(['0,0,0,1'] * 9)}]", "rotary-base": 5000000, "num-query-groups": 4},
    ),
    "Qwen3-30B-A3B": (
        _QWEN3_MOE,
        {
            "num-experts": 128,
            "moe-router-topk": 8,
            "moe-ffn-hidden-size": 768,
            "qk-layernorm": True,
            "kv-channels": 128,
        },
    ),
}
