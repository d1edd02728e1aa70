"""DeepSeek V2 and V3: multi-latent attention, dense layers first, then routed and shared experts."""

from megatron_cod.huggingface.architecture import Architecture
from megatron_cod.huggingface.families import parts
from megatron_cod.huggingface.rows import GATE_UP, Part, Row

_ATTENTION, _MLP = "decoder.layers.self_attention.", "decoder.layers.mlp."
_HF_ATTENTION, _HF_MLP = "model.layers.{l}.self_attn.", "model.layers.{l}.mlp."


def _ranked(arch: Architecture, _layer: int) -> bool:
    return arch.latent is not None and arch.latent.q_rank is not None


def _unranked(arch: Architecture, layer: int) -> bool:
    return not _ranked(arch, layer)


def _experts(arch: Architecture, layer: int) -> bool:
    return arch.is_expert_layer(layer)


def _shared(arch: Architecture, layer: int) -> bool:
    return arch.is_expert_layer(layer) and arch.experts is not None and arch.experts.shared_ffn > 0


def _sigmoid(arch: Architecture, layer: int) -> bool:
    return arch.is_expert_layer(layer) and arch.experts is not None and arch.experts.score == "sigmoid"


def _latent(megatron: str, hf: str, sizes: str, **more: object) -> Row:
    return Row((_ATTENTION + megatron,), ((_HF_ATTENTION + hf, sizes),), **more)  # type: ignore[arg-type]


def _norm(name: str, inside: str, hf: str, sizes: str, **more: object) -> Row:
    keys = (f"{_ATTENTION}{name}.weight", f"{_ATTENTION}{inside}.layer_norm_weight")
    return Row(keys, ((_HF_ATTENTION + hf, sizes),), **more)  # type: ignore[arg-type]


ROWS = (
    parts.EMBEDDING,
    parts.ATTENTION_NORM,
    _latent("linear_q_proj.weight", "q_proj.weight", "q_heads hidden", when=_unranked),
    _latent("linear_q_down_proj.weight", "q_a_proj.weight", "q_rank hidden", when=_ranked),
    _norm("q_layernorm", "linear_q_up_proj", "q_a_layernorm.weight", "q_rank", when=_ranked),
    _latent("linear_q_up_proj.weight", "q_b_proj.weight", "q_heads q_rank", when=_ranked),
    _latent("linear_kv_down_proj.weight", "kv_a_proj_with_mqa.weight", "kv_down hidden"),
    _norm("kv_layernorm", "linear_kv_up_proj", "kv_a_layernorm.weight", "kv_rank"),
    _latent("linear_kv_up_proj.weight", "kv_b_proj.weight", "kv_heads kv_rank"),
    _latent("linear_proj.weight", "o_proj.weight", "hidden values", part=Part.ATTENTION_OUTPUT),
    parts.MLP_NORM,
    *parts.DENSE_MLP,
    Row((_MLP + "router.weight",), ((_HF_MLP + "gate.weight", "experts hidden"),), when=_experts),
    Row(
        (_MLP + "router.expert_bias",),
        ((_HF_MLP + "gate.e_score_correction_bias", "experts"),),
        when=_sigmoid,
    ),
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
    Row(
        (_MLP + "shared_experts.linear_fc1.weight",),
        (
            (_HF_MLP + "shared_experts.gate_proj.weight", "shared_ffn hidden"),
            (_HF_MLP + "shared_experts.up_proj.weight", "shared_ffn hidden"),
        ),
        join=GATE_UP,
        when=_shared,
    ),
    Row(
        (_MLP + "shared_experts.linear_fc2.weight",),
        ((_HF_MLP + "shared_experts.down_proj.weight", "hidden shared_ffn"),),
        part=Part.MLP_OUTPUT,
        when=_shared,
    ),
    parts.FINAL_NORM,
    parts.HEAD,
)
