"""Mixtral: experts in every layer, probabilities by softmax over the chosen ones."""

from megatron_cod.huggingface.families import parts
from megatron_cod.huggingface.rows import GATE_UP, Part, Row

_MLP, _HF = "decoder.layers.mlp.", "model.layers.{l}.block_sparse_moe."

ROWS = (
    parts.EMBEDDING,
    parts.ATTENTION_NORM,
    *parts.ATTENTION,
    parts.MLP_NORM,
    Row((_MLP + "router.weight",), ((_HF + "gate.weight", "experts hidden"),)),
    Row(
        (_MLP + "experts.experts.linear_fc1.weight",),
        ((_HF + "experts.{e}.w1.weight", "expert_ffn hidden"), (_HF + "experts.{e}.w3.weight", "expert_ffn hidden")),
        join=GATE_UP,
    ),
    Row(
        (_MLP + "experts.experts.linear_fc2.weight",),
        ((_HF + "experts.{e}.w2.weight", "hidden expert_ffn"),),
        part=Part.MLP_OUTPUT,
    ),
    parts.FINAL_NORM,
    parts.HEAD,
)
