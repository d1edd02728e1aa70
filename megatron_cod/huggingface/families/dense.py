"""Llama, Mistral, Qwen2 (2.5) and Qwen3: one block, with or without biases and norms of queries and keys."""

from megatron_cod.huggingface.families import shared_rows

ROWS = (
    shared_rows.EMBEDDING,
    shared_rows.ATTENTION_NORM,
    *shared_rows.ATTENTION,
    shared_rows.MLP_NORM,
    *shared_rows.DENSE_MLP,
    shared_rows.FINAL_NORM,
    shared_rows.HEAD,
)
