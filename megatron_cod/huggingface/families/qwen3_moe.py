"""Qwen3 with experts: norms of queries and keys, experts in every layer but listed ones, no shared ones."""

from typing import Any

from megatron_cod.errors import UserError
from megatron_cod.huggingface.families import shared_rows
from megatron_cod.huggingface.families.architecture import EXPERTS, QK_NORM, SCALED_ROPE, Architecture, Experts
from megatron_cod.huggingface.families.config_fields import NO_WINDOW, Config, need, only
from megatron_cod.huggingface.families.family import Family

ROWS = (
    shared_rows.EMBEDDING,
    shared_rows.ATTENTION_NORM,
    *shared_rows.ATTENTION,
    shared_rows.MLP_NORM,
    *shared_rows.DENSE_MLP,
    shared_rows.ROUTER,
    *shared_rows.EXPERTS,
    shared_rows.FINAL_NORM,
    shared_rows.HEAD,
)


def _read(config: Config) -> dict[str, Any]:
    only(config, attention_bias=False, decoder_sparse_step=1)
    dense = sorted(int(layer) for layer in config.get("mlp_only_layers") or ())
    if dense != list(range(len(dense))):
        raise UserError(f"config.json has mlp_only_layers {dense}; only the first layers may be without experts")
    count = config.get("num_experts") or config.get("num_local_experts")
    if count is None:
        raise UserError("config.json does not set num_experts")
    experts = Experts(
        count=int(count),
        chosen=int(need(config, "num_experts_per_tok")),
        ffn=int(need(config, "moe_intermediate_size")),
        dense_layers=len(dense),
        # Over all experts, then normalised over the chosen: the softmax over the chosen.
        score="softmax" if config.get("norm_topk_prob") else "pre_softmax",
    )
    return {"qk_norm": True, "experts": experts}


def _write(arch: Architecture) -> dict[str, Any]:
    assert arch.experts is not None
    return {
        "num_experts": arch.experts.count,
        "num_experts_per_tok": arch.experts.chosen,
        "moe_intermediate_size": arch.experts.ffn,
        "norm_topk_prob": arch.experts.score == "softmax",
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(range(arch.experts.dense_layers)),
        "attention_bias": False,
        **NO_WINDOW,
        "router_aux_loss_coef": 0.001,
        "output_router_logits": False,
    }


def _fits(arch: Architecture) -> bool:
    found = arch.experts
    assert found is not None
    stock = Experts(found.count, found.chosen, found.ffn, dense_layers=found.dense_layers, score=found.score)
    return found == stock and found.score in ("softmax", "pre_softmax")


QWEN3_MOE = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    ROWS,
    _read,
    _write,
    needs=frozenset({EXPERTS, QK_NORM}),
    may_have=SCALED_ROPE,
    fits=_fits,
)
