"""Config layouts of published models, with the values of their ``config.json``."""

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
REFUSED: dict[str, tuple[dict[str, Any], str]] = {}
"""Model -> (config.json, what the refusal names)."""
