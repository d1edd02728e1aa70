"""Conditions under which Megatron-Core 0.19.2 reads a flag of mixtures of experts: more rows of ``void.py``."""

from __future__ import annotations

from typing import Any

from megatron_cod.training.flags.void_row import Void

_AUXILIARY = frozenset({"aux_loss", "seq_aux_loss", "global_aux_loss"})


def _balancing(args: Any) -> list[str]:
    kinds = args.moe_router_load_balancing_type
    return [kinds] if isinstance(kinds, str) else kinds


def _coefficients(args: Any) -> bool:
    values = args.moe_aux_loss_coeff
    return any(values) if isinstance(values, list) else bool(values)


def _scores(args: Any) -> bool:
    """Whether the router's scores are those of --moe-router-score-function."""
    return "sinkhorn" not in _balancing(args)


def _flex(args: Any) -> bool:
    return args.moe_token_dispatcher_type == "flex"


EXPERT_CONDITIONS = (
    Void(
        "moe_*",
        lambda a: a.num_experts,
        "without --num-experts",
        # Chosen by the backend, or of inference.
        but="moe_pad_experts_for_cuda_graph_inference moe_use_upcycling",
    ),
    Void("expert_model_parallel_size expert_tensor_parallel_size", lambda a: a.num_experts, "without --num-experts"),
    Void(
        "moe_router_num_groups moe_router_group_topk",
        lambda a: a.moe_router_num_groups and a.moe_router_group_topk,
        "without the other of --moe-router-num-groups and --moe-router-group-topk",
    ),
    Void(
        "moe_aux_loss_coeff",
        lambda a: not _AUXILIARY.isdisjoint(_balancing(a)),
        "under a --moe-router-load-balancing-type that has no auxiliary loss",
    ),
    Void(
        "moe_router_load_balancing_type",
        lambda a: _AUXILIARY.isdisjoint(_balancing(a)) or _coefficients(a),
        "with a --moe-aux-loss-coeff of 0, the default",
    ),
    Void(
        "moe_router_quantile_balancing_ema",
        lambda a: "quantile_balancing" in _balancing(a),
        "without --moe-router-load-balancing-type quantile_balancing",
    ),
    Void(
        "moe_router_score_function moe_router_topk_scaling_factor",
        _scores,
        "under --moe-router-load-balancing-type sinkhorn",
    ),
    Void(
        "moe_router_pre_softmax",
        lambda a: a.moe_router_score_function == "softmax" and _scores(a),
        "without --moe-router-score-function softmax, and under --moe-router-load-balancing-type sinkhorn",
    ),
    Void(
        "moe_router_bias_update_rate",
        lambda a: a.moe_router_enable_expert_bias,
        "without --moe-router-enable-expert-bias",
    ),
    Void(
        "moe_pad_expert_input_to_capacity moe_token_drop_policy",
        lambda a: a.moe_expert_capacity_factor is not None,
        "without --moe-expert-capacity-factor",
    ),
    Void("moe_flex_*", _flex, "without --moe-token-dispatcher-type flex"),
    Void(
        "moe_deepep_*",
        lambda a: _flex(a) and (a.moe_enable_deepep or a.moe_flex_dispatcher_backend == "deepep"),
        "without --moe-token-dispatcher-type flex, and --moe-flex-dispatcher-backend deepep",
    ),
    Void(
        "moe_hybridep_*",
        lambda a: _flex(a) and a.moe_flex_dispatcher_backend == "hybridep",
        "without --moe-token-dispatcher-type flex --moe-flex-dispatcher-backend hybridep",
    ),
    Void(
        "moe_ncclep_*",
        lambda a: _flex(a) and a.moe_flex_dispatcher_backend == "ncclep",
        "without --moe-token-dispatcher-type flex --moe-flex-dispatcher-backend ncclep",
    ),
    Void("moe_upcycling_granularity", lambda a: a.moe_use_upcycling, "without --moe-use-upcycling"),
    Void(
        "moe_use_upcycling expert_tensor_parallel_num_weight_shards", lambda a: a.num_experts, "without --num-experts"
    ),
    Void(
        "moe_shared_expert_overlap moe_shared_expert_gate",
        lambda a: a.moe_shared_expert_intermediate_size,
        "without --moe-shared-expert-intermediate-size",
    ),
)
