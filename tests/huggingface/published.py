"""Config layouts of published models. Values of GLM-4-9B and Granite 3.1-2b are from public copies, others unchecked."""

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
_GEMMA = {
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
    **_GEMMA,
    "architectures": ["GemmaForCausalLM"],
    "model_type": "gemma",
    "max_position_embeddings": 8192,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
}
_GEMMA_2 = {
    **_GEMMA,
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
}
_GEMMA_3 = {
    **_GEMMA,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "attn_logit_softcapping": None,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": None,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
_OLMO = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-06,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
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
_CAPPED = r"attn_logit_softcapping 50: Megatron-Core 0\.19\.2 has no soft cap"
_TWO_ROPES = r"RoPE .*10000.* in layers with a window and .*1000000.* in the others"
_OLMO_NORMS = "norms of queries and keys .* all heads together"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gemma-2-2b": (
        {
            **_GEMMA_2,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_attention_heads": 8,
            "num_hidden_layers": 26,
            "num_key_value_heads": 4,
            "query_pre_attn_scalar": 256,
        },
        _CAPPED,
    ),
    "gemma-2-27b": (
        {
            **_GEMMA_2,
            "head_dim": 128,
            "hidden_size": 4608,
            "intermediate_size": 36864,
            "num_attention_heads": 32,
            "num_hidden_layers": 46,
            "num_key_value_heads": 16,
            "query_pre_attn_scalar": 144,
        },
        _CAPPED,
    ),
    "gemma-3-270m": (
        {**_GEMMA_3, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18},
        _TWO_ROPES,
    ),
    "gemma-3-1b-pt": (
        {**_GEMMA_3, "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26},
        _TWO_ROPES,
    ),
    "OLMo-2-1124-7B": (
        {**_OLMO, "model_type": "olmo2", "max_position_embeddings": 4096, "vocab_size": 100352},
        _OLMO_NORMS,
    ),
    "Olmo-3-1025-7B": (
        {
            **_OLMO,
            "model_type": "olmo3",
            "max_position_embeddings": 65536,
            "sliding_window": 4096,
            "vocab_size": 100278,
        },
        _OLMO_NORMS,
    ),
}
"""Model -> (config.json, what the refusal names)."""
