"""Phi-3 and Phi-4: a Llama whose queries, keys and values are one tensor, as are gate and up."""

from megatron_cod.huggingface.families import shared_rows
from megatron_cod.huggingface.families.family import Family
from megatron_cod.huggingface.families.mapping_rows import FUSED_QKV, Part, Row

_LAYERS, _HF = "decoder.layers.", "model.layers.{l}."

ROWS = (
    shared_rows.EMBEDDING,
    shared_rows.ATTENTION_NORM,
    Row(
        (_LAYERS + "self_attention.linear_qkv.weight",),
        ((_HF + "self_attn.qkv_proj.weight", "qkv hidden"),),
        join=FUSED_QKV,
    ),
    Row(
        (_LAYERS + "self_attention.linear_proj.weight",),
        ((_HF + "self_attn.o_proj.weight", "hidden q"),),
        part=Part.ATTENTION_OUTPUT,
    ),
    shared_rows.MLP_NORM,
    *shared_rows.FUSED_MLP,
    shared_rows.FINAL_NORM,
    shared_rows.HEAD,
)

PHI3 = Family("phi3", "Phi3ForCausalLM", ROWS, lambda _: {}, lambda _: {"sliding_window": None})
