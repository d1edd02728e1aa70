"""Llama, Mistral, Qwen2 (2.5) and Qwen3: one block, with or without biases and norms of queries and keys."""

from megatron_cod.huggingface.families import parts

ROWS = (
    parts.EMBEDDING,
    parts.ATTENTION_NORM,
    *parts.ATTENTION,
    parts.MLP_NORM,
    *parts.DENSE_MLP,
    parts.FINAL_NORM,
    parts.HEAD,
)
