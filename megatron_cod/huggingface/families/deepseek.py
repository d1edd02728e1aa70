"""DeepSeek V2 and V3: multi-latent attention, dense layers first, then routed and shared experts."""

from dataclasses import replace
from typing import Any

from megatron_cod.errors import UserError
from megatron_cod.huggingface.families import shared_rows
from megatron_cod.huggingface.families.architecture import EXPERTS, LATENT, YARN, Architecture, Experts, Latent
from megatron_cod.huggingface.families.config_fields import Config, need, only
from megatron_cod.huggingface.families.family import Family
from megatron_cod.huggingface.families.mapping_rows import GATE_UP, Part, Row

_ATTENTION, _MLP = "decoder.layers.self_attention.", "decoder.layers.mlp."
_HF_ATTENTION, _HF_MLP = "model.layers.{l}.self_attn.", "model.layers.{l}.mlp."


def _ranked(arch: Architecture, _layer: int) -> bool:
    return arch.latent is not None and arch.latent.q_rank is not None


def _unranked(arch: Architecture, layer: int) -> bool:
    return not _ranked(arch, layer)


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
    shared_rows.EMBEDDING,
    shared_rows.ATTENTION_NORM,
    _latent("linear_q_proj.weight", "q_proj.weight", "q_heads hidden", when=_unranked),
    _latent("linear_q_down_proj.weight", "q_a_proj.weight", "q_rank hidden", when=_ranked),
    _norm("q_layernorm", "linear_q_up_proj", "q_a_layernorm.weight", "q_rank", when=_ranked),
    _latent("linear_q_up_proj.weight", "q_b_proj.weight", "q_heads q_rank", when=_ranked),
    _latent("linear_kv_down_proj.weight", "kv_a_proj_with_mqa.weight", "kv_down hidden"),
    _norm("kv_layernorm", "linear_kv_up_proj", "kv_a_layernorm.weight", "kv_rank"),
    _latent("linear_kv_up_proj.weight", "kv_b_proj.weight", "kv_heads kv_rank"),
    _latent("linear_proj.weight", "o_proj.weight", "hidden values", part=Part.ATTENTION_OUTPUT),
    shared_rows.MLP_NORM,
    *shared_rows.DENSE_MLP,
    shared_rows.ROUTER,
    Row(
        (_MLP + "router.expert_bias",),
        ((_HF_MLP + "gate.e_score_correction_bias", "experts"),),
        when=_sigmoid,
    ),
    *shared_rows.EXPERTS,
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
    *shared_rows.PREDICTION,
    shared_rows.FINAL_NORM,
    shared_rows.HEAD,
)


def _read_latent(config: Config) -> dict[str, Any]:
    # transformers gives the norms inside the attention its default epsilon, not rms_norm_eps.
    only(config, attention_bias=False, mlp_bias=False, rms_norm_eps=1e-6, rope_interleave=True, moe_layer_freq=1)
    rank = config.get("q_lora_rank")
    latent = Latent(
        kv_rank=int(need(config, "kv_lora_rank")),
        nope=int(need(config, "qk_nope_head_dim")),
        rope=int(need(config, "qk_rope_head_dim")),
        value=int(need(config, "v_head_dim")),
        q_rank=None if rank is None else int(rank),
    )
    heads = int(need(config, "num_attention_heads"))
    only(config, num_key_value_heads=heads)
    return {"latent": latent, "groups": heads, "head_dim": latent.nope + latent.rope}


def _read_experts(config: Config, score: str) -> Experts | None:
    dense_layers = int(config.get("first_k_dense_replace") or 0)
    if dense_layers >= int(need(config, "num_hidden_layers")):
        return None
    ffn = int(need(config, "moe_intermediate_size"))
    return Experts(
        count=int(need(config, "n_routed_experts")),
        chosen=int(need(config, "num_experts_per_tok")),
        ffn=ffn,
        shared_ffn=ffn * int(config.get("n_shared_experts") or 0),
        dense_layers=dense_layers,
        score=score,
        scale=float(config.get("routed_scaling_factor") or 1.0),
    )


def _with_groups(config: Config, experts: Experts | None, best: int) -> Experts | None:
    """The experts with the groups that a token is limited to.

    best: so many scores of a group, summed, rank it in the stock model; in Megatron-Core 0.19.2 the best
    ``chosen // chosen_groups`` (``group_limited_topk``). UserError where that is another number.
    """
    groups = int(config.get("n_group") or 1)
    kept = int(config.get("topk_group") or groups)
    if experts is None or kept == groups:
        return experts
    # The best experts are in as many groups at most, which their best expert ranks first: all of them are chosen anyway.
    if best == 1 and experts.chosen <= kept < groups:
        return experts
    ranked = experts.chosen // kept
    if ranked != best:
        raise UserError(
            f"config.json chooses {experts.chosen} experts of {kept} groups: Megatron ranks a group by the sum of its best "
            f"{ranked} (num_experts_per_tok // topk_group), {config.get('model_type')} always by its best {best}"
        )
    if experts.count % groups or not experts.chosen <= kept * (experts.count // groups) < experts.count:
        raise UserError(
            f"config.json has {experts.count} experts in {groups} groups (n_group): {kept} of them (topk_group) do not "
            f"hold the {experts.chosen} that a token chooses"
        )
    return replace(experts, groups=groups, chosen_groups=kept)


def _read_v2(config: Config) -> dict[str, Any]:
    only(config, norm_topk_prob=False, scoring_func="softmax")
    method, experts = config.get("topk_method") or "greedy", _read_experts(config, "pre_softmax")
    if method == "group_limited_greedy":
        experts = _with_groups(config, experts, best=1)
    elif method != "greedy":
        raise UserError(
            f"config.json has topk_method {method!r}; only greedy and group_limited_greedy can be carried over"
        )
    return {**_read_latent(config), "experts": experts}


def _read_v3(config: Config) -> dict[str, Any]:
    only(config, scoring_func="sigmoid", topk_method="noaux_tc")
    experts = _with_groups(config, _read_experts(config, "sigmoid"), best=2)
    normalised = bool(config.get("norm_topk_prob", True))
    if experts is not None and normalised != (experts.chosen > 1):
        raise UserError(
            f"config.json has norm_topk_prob {normalised} with num_experts_per_tok {experts.chosen}: Megatron divides the "
            f"weights of several experts by their sum, and not that of one"
        )
    predicted = int(config.get("num_nextn_predict_layers") or 0) if experts is not None else 0
    return {**_read_latent(config), "experts": experts, "predicted": predicted}


def _write(arch: Architecture) -> dict[str, Any]:
    assert arch.latent is not None
    found = arch.experts or Experts(1, 1, arch.ffn, dense_layers=arch.layers)
    return {
        "kv_lora_rank": arch.latent.kv_rank,
        "q_lora_rank": arch.latent.q_rank,
        "qk_nope_head_dim": arch.latent.nope,
        "qk_rope_head_dim": arch.latent.rope,
        "v_head_dim": arch.latent.value,
        "head_dim": arch.latent.rope,  # transformers takes the rotary size from it
        "num_key_value_heads": arch.heads,
        "n_routed_experts": found.count,
        "num_experts_per_tok": found.chosen,
        "moe_intermediate_size": found.ffn,
        "n_shared_experts": max(found.shared_ffn // found.ffn, 1),
        "first_k_dense_replace": found.dense_layers,
        "routed_scaling_factor": found.scale,
        "moe_layer_freq": 1,
        "attention_bias": False,
    }


def _write_v2(arch: Architecture) -> dict[str, Any]:
    found = arch.experts
    own: dict[str, Any] = {"topk_method": "greedy", "n_group": None, "topk_group": None}
    if found is not None and found.groups > 1:
        own = {"topk_method": "group_limited_greedy", "n_group": found.groups, "topk_group": found.chosen_groups}
    return {**_write(arch), **own, "norm_topk_prob": False, "scoring_func": "softmax"}


def _write_v3(arch: Architecture) -> dict[str, Any]:
    found = arch.experts or Experts(1, 1, arch.ffn)
    own: dict[str, Any] = {"n_group": found.groups, "topk_group": found.chosen_groups}
    own["norm_topk_prob"] = arch.experts is None or found.chosen > 1
    own |= {"topk_method": "noaux_tc", "num_nextn_predict_layers": arch.predicted, "rope_interleave": True}
    return {**_write(arch), **own, "scoring_func": "sigmoid"}


def _fits(arch: Architecture, score: str) -> bool:
    found = arch.experts
    if arch.eps != 1e-6:
        return False
    if found is None:
        return score == "sigmoid"
    whole = found.shared_ffn and found.shared_ffn % found.ffn == 0  # transformers always builds shared experts
    grouped = found.groups == 1 or found.chosen // found.chosen_groups == (2 if score == "sigmoid" else 1)
    return bool(found.score == score and whole and grouped)


DEEPSEEK_V2 = Family(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    ROWS,
    _read_v2,
    _write_v2,
    needs=frozenset({LATENT}),
    may_have=frozenset({EXPERTS, YARN}),
    fits=lambda arch: _fits(arch, "pre_softmax"),
)
DEEPSEEK_V3 = Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    ROWS,
    _read_v3,
    _write_v3,
    needs=frozenset({LATENT}),
    may_have=frozenset({EXPERTS, YARN}),
    fits=lambda arch: _fits(arch, "sigmoid"),
    # The loaders give every layer behind the first ones experts, a prediction layer too.
    predicts=lambda arch: arch.experts is not None,
)
