"""Rows that several families share. Hugging Face's names on the right, Megatron's on the left."""

from megatron_cod.huggingface.families.architecture import Architecture
from megatron_cod.huggingface.families.mapping_rows import GATE_UP, QKV, VOCABULARY, Part, Row

_LAYERS = "decoder.layers."
_HF = "model.layers.{l}."

# A norm's key depends on where the norm is in Transformer Engine: inside the linear layer behind it, or alone.
ATTENTION_NORM = Row(
    (_LAYERS + "self_attention.linear_qkv.layer_norm_weight", _LAYERS + "input_layernorm.weight"),
    ((_HF + "input_layernorm.weight", "hidden"),),
    part=Part.ATTENTION_NORM,
)
MLP_NORM = Row(
    (_LAYERS + "mlp.linear_fc1.layer_norm_weight", _LAYERS + "pre_mlp_layernorm.weight"),
    ((_HF + "post_attention_layernorm.weight", "hidden"),),
    part=Part.MLP_NORM,
)
EMBEDDING = Row(
    ("embedding.word_embeddings.weight",), (("model.embed_tokens.weight", "vocab hidden"),), join=VOCABULARY
)
FINAL_NORM = Row(("decoder.final_layernorm.weight",), (("model.norm.weight", "hidden"),))
HEAD = Row(
    ("output_layer.weight",),
    (("lm_head.weight", "vocab hidden"),),
    join=VOCABULARY,
    when=lambda arch, _: not arch.tied,
)


def _dense(arch: Architecture, layer: int) -> bool:
    return not arch.is_expert_layer(layer)


def _biased(arch: Architecture, _layer: int) -> bool:
    return arch.linear_bias


def _qkv_biased(arch: Architecture, _layer: int) -> bool:
    return arch.qkv_bias or arch.linear_bias


def _attn(name: str) -> str:
    return f"{_HF}self_attn.{name}"


ATTENTION = (
    Row(
        (_LAYERS + "self_attention.linear_qkv.weight",),
        (
            (_attn("q_proj.weight"), "q hidden"),
            (_attn("k_proj.weight"), "kv hidden"),
            (_attn("v_proj.weight"), "kv hidden"),
        ),
        join=QKV,
    ),
    Row(
        (_LAYERS + "self_attention.linear_qkv.bias",),
        ((_attn("q_proj.bias"), "q"), (_attn("k_proj.bias"), "kv"), (_attn("v_proj.bias"), "kv")),
        join=QKV,
        when=_qkv_biased,
    ),
    Row(
        (_LAYERS + "self_attention.q_layernorm.weight",),
        ((_attn("q_norm.weight"), "head"),),
        when=lambda arch, _: arch.qk_norm,
    ),
    Row(
        (_LAYERS + "self_attention.k_layernorm.weight",),
        ((_attn("k_norm.weight"), "head"),),
        when=lambda arch, _: arch.qk_norm,
    ),
    Row(
        (_LAYERS + "self_attention.linear_proj.weight",),
        ((_attn("o_proj.weight"), "hidden q"),),
        part=Part.ATTENTION_OUTPUT,
    ),
    Row(
        (_LAYERS + "self_attention.linear_proj.bias",),
        ((_attn("o_proj.bias"), "hidden"),),
        part=Part.ATTENTION_OUTPUT,
        when=_biased,
    ),
)

DENSE_MLP = (
    Row(
        (_LAYERS + "mlp.linear_fc1.weight",),
        ((_HF + "mlp.gate_proj.weight", "ffn hidden"), (_HF + "mlp.up_proj.weight", "ffn hidden")),
        join=GATE_UP,
        when=_dense,
    ),
    Row(
        (_LAYERS + "mlp.linear_fc1.bias",),
        ((_HF + "mlp.gate_proj.bias", "ffn"), (_HF + "mlp.up_proj.bias", "ffn")),
        join=GATE_UP,
        when=lambda arch, layer: _dense(arch, layer) and arch.linear_bias,
    ),
    Row(
        (_LAYERS + "mlp.linear_fc2.weight",),
        ((_HF + "mlp.down_proj.weight", "hidden ffn"),),
        part=Part.MLP_OUTPUT,
        when=_dense,
    ),
    Row(
        (_LAYERS + "mlp.linear_fc2.bias",),
        ((_HF + "mlp.down_proj.bias", "hidden"),),
        part=Part.MLP_OUTPUT,
        when=lambda arch, layer: _dense(arch, layer) and arch.linear_bias,
    ),
)

FUSED_MLP = (
    Row((_LAYERS + "mlp.linear_fc1.weight",), ((_HF + "mlp.gate_up_proj.weight", "gate_up hidden"),)),
    Row((_LAYERS + "mlp.linear_fc2.weight",), ((_HF + "mlp.down_proj.weight", "hidden ffn"),), part=Part.MLP_OUTPUT),
)

_BRANCHES = {
    "attention": ("self_attn_bda", Part.ATTENTION_BRANCH_NORM),
    "mlp": ("mlp_bda", Part.MLP_BRANCH_NORM),
}


def branch_norm(branch: str, hf: str) -> Row:
    """The norm behind a branch, "attention" or "mlp"; hf: its name in a layer of the stock model."""
    join, part = _BRANCHES[branch]
    return Row((f"{_LAYERS}{join}.norm.weight",), ((f"{_HF}{hf}.weight", "hidden"),), part=part)


_MLP, _HF_MLP = _LAYERS + "mlp.", _HF + "mlp."


def _experts(arch: Architecture, layer: int) -> bool:
    return arch.is_expert_layer(layer)


ROUTER = Row((_MLP + "router.weight",), ((_HF_MLP + "gate.weight", "experts hidden"),), part=Part.ROUTER, when=_experts)
EXPERTS = (
    Row(
        (_MLP + "experts.experts.linear_fc1.weight",),
        (
            (_HF_MLP + "experts.{e}.gate_proj.weight", "expert_ffn hidden"),
            (_HF_MLP + "experts.{e}.up_proj.weight", "expert_ffn hidden"),
        ),
        join=GATE_UP,
        when=_experts,
    ),
    Row(
        (_MLP + "experts.experts.linear_fc2.weight",),
        ((_HF_MLP + "experts.{e}.down_proj.weight", "hidden expert_ffn"),),
        part=Part.MLP_OUTPUT,
        when=_experts,
    ),
)


def _predicts(arch: Architecture, layer: int) -> bool:
    return layer > arch.layers


_MTP = "mtp.layers."
# What a layer of multi-token prediction has beside a block, as DeepSeek-V3 names it.
PREDICTION = (
    Row((_MTP + "enorm.weight",), ((_HF + "enorm.weight", "hidden"),), when=_predicts),
    Row((_MTP + "hnorm.weight",), ((_HF + "hnorm.weight", "hidden"),), when=_predicts),
    Row((_MTP + "eh_proj.weight",), ((_HF + "eh_proj.weight", "hidden both"),), when=_predicts),
    Row((_MTP + "final_layernorm.weight",), ((_HF + "shared_head.norm.weight", "hidden"),), when=_predicts),
    Row(EMBEDDING.megatron, ((_HF + "embed_tokens.weight", "vocab hidden"),), VOCABULARY, when=_predicts, copy=True),
    Row(
        (*HEAD.megatron, *EMBEDDING.megatron),
        ((_HF + "shared_head.head.weight", "vocab hidden"),),
        join=VOCABULARY,
        when=_predicts,
        copy=True,
    ),
)
