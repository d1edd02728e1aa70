"""Mixtral: experts in every layer, probabilities by softmax over the chosen ones."""

from typing import Any

from megatron_cod.huggingface.families import shared_rows
from megatron_cod.huggingface.families.architecture import EXPERTS, SCALED_ROPE, Architecture, Experts
from megatron_cod.huggingface.families.config_fields import Config, need
from megatron_cod.huggingface.families.family import Family
from megatron_cod.huggingface.families.mapping_rows import GATE_UP, Part, Row

_MLP, _HF = "decoder.layers.mlp.", "model.layers.{l}.block_sparse_moe."

ROWS = (
    shared_rows.EMBEDDING,
    shared_rows.ATTENTION_NORM,
    *shared_rows.ATTENTION,
    shared_rows.MLP_NORM,
    Row((_MLP + "router.weight",), ((_HF + "gate.weight", "experts hidden"),), part=Part.ROUTER),
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
    shared_rows.FINAL_NORM,
    shared_rows.HEAD,
)


def _read(config: Config) -> dict[str, Any]:
    ffn = int(need(config, "intermediate_size"))
    count, chosen = int(need(config, "num_local_experts")), int(need(config, "num_experts_per_tok"))
    return {"experts": Experts(count, chosen, ffn)}


def _write(arch: Architecture) -> dict[str, Any]:
    assert arch.experts is not None
    return {
        "num_local_experts": arch.experts.count,
        "num_experts_per_tok": arch.experts.chosen,
        "intermediate_size": arch.experts.ffn,
        "router_aux_loss_coef": 0.001,
        "output_router_logits": False,
        "router_jitter_noise": 0.0,
        "sliding_window": None,
    }


def _fits(arch: Architecture) -> bool:
    found = arch.experts
    return found is not None and found == Experts(found.count, found.chosen, found.ffn)


MIXTRAL = Family(
    "mixtral",
    "MixtralForCausalLM",
    ROWS,
    _read,
    _write,
    needs=frozenset({EXPERTS}),
    may_have=SCALED_ROPE,
    fits=_fits,
)
