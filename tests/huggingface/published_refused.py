"""Config layouts of published models that Megatron-Core 0.19.2 does not compute.

Compared with public copies: Gemma 2 and 3, OLMo-2-1124-7B. From memory: Olmo-3-1025-7B.
"""

from typing import Any

from tests.huggingface.published import GEMMA

_GEMMA_2 = {
    **GEMMA,
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
    **GEMMA,
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
