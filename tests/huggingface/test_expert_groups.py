"""Experts limited to groups: what is accepted chooses as transformers' router does, what is refused would not."""

from itertools import product

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from megatron_cod.errors import UserError
from megatron_cod.huggingface.families.architecture import Experts
from megatron_cod.huggingface.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3

TOKENS, EXPERTS = 400, 12
SIZES = {
    "hidden_size": EXPERTS,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "n_routed_experts": EXPERTS,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 0,
}
KINDS = {
    "deepseek_v2": (DEEPSEEK_V2, DeepseekV2Config, DeepseekV2TopkRouter),
    "deepseek_v3": (DEEPSEEK_V3, DeepseekV3Config, DeepseekV3TopkRouter),
}


def config_of(kind: str, groups: int, kept: int, chosen: int) -> dict:
    method = {"topk_method": "group_limited_greedy"} if kind == "deepseek_v2" else {}
    own = {**method, "norm_topk_prob": kind == "deepseek_v3" and chosen > 1}
    limit = {"n_group": groups, "topk_group": kept, "num_experts_per_tok": chosen}
    return KINDS[kind][1](**SIZES, **limit, **own).to_dict() | {"model_type": kind}


def theirs(kind: str, config: dict, logits: Tensor) -> Tensor:
    """[tokens, experts] weights of transformers' router."""
    _, config_class, router_class = KINDS[kind]
    router = router_class(config_class(**config))
    with torch.no_grad():
        router.weight.copy_(torch.eye(EXPERTS))
        if kind == "deepseek_v3":
            router.e_score_correction_bias.copy_(bias())
        _, weights, chosen = router(logits)
    return torch.zeros_like(logits).scatter(1, chosen, weights)


def ours(experts: Experts, logits: Tensor) -> Tensor:
    """The same of Megatron's, with the options that the import gives it."""
    from megatron.core.transformer.moe.moe_utils import topk_routing_with_score_function

    limited = experts.groups > 1
    weights, _ = topk_routing_with_score_function(
        logits,
        experts.chosen,
        use_pre_softmax=experts.score == "pre_softmax",
        num_groups=experts.groups if limited else None,
        group_topk=experts.chosen_groups if limited else None,
        scaling_factor=experts.scale,
        score_function="sigmoid" if experts.score == "sigmoid" else "softmax",
        expert_bias=bias() if experts.score == "sigmoid" else None,
    )
    return weights


def bias() -> Tensor:
    return 0.3 * torch.randn(EXPERTS, generator=torch.Generator().manual_seed(3))


def router_logits() -> Tensor:
    return 2 * torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(7))


def limits(kind: str) -> list[tuple[int, int, int]]:
    """(groups, groups of a token, experts of a token) for which transformers' groups hold the experts."""
    return [
        (groups, kept, chosen)
        for groups, kept, chosen in product((2, 3, 4, 6, 12), range(1, 13), range(1, 9))
        if kept <= groups and chosen <= kept * (EXPERTS // groups) and not (kind == "deepseek_v3" and groups == 12)
    ]


@pytest.mark.slow_except("deepseek_v3")
@pytest.mark.parametrize("kind", KINDS)
def test_accepts_what_megatron_computes_and_nothing_else(kind):
    accepted = refused = limiting = 0
    for groups, kept, chosen in limits(kind):
        config, logits = config_of(kind, groups, kept, chosen), router_logits()
        expected = theirs(kind, config, logits)
        try:
            experts = KINDS[kind][0].read(config)["experts"]
        except UserError as error:
            # As Megatron would rank these groups (its best none of a group is no rank), tokens choose others.
            assert f"chooses {chosen} experts of {kept} groups" in str(error)
            score = "pre_softmax" if kind == "deepseek_v2" else "sigmoid"
            found = ours(Experts(EXPERTS, chosen, 1, 0, 0, score, 1.5, groups, kept), logits)
            assert ((found - expected).abs() > 1e-3).any(), (groups, kept, chosen)
            refused += 1
            continue
        assert (ours(experts, logits) - expected).abs().max() <= 1e-6, (groups, kept, chosen)
        accepted += 1
        limiting += experts.groups > 1
    assert min(accepted, refused, limiting) >= 5


def test_one_expert_is_not_normalised():
    config = config_of("deepseek_v3", 2, 2, 1)
    assert DEEPSEEK_V3.read(config)["experts"].chosen == 1
    assert not torch.equal(
        theirs("deepseek_v3", config, router_logits()),
        theirs("deepseek_v3", {**config, "norm_topk_prob": True}, router_logits()),
    )
    for chosen, normalised in ((1, True), (2, False)):
        with pytest.raises(UserError, match=f"norm_topk_prob {normalised} with num_experts_per_tok {chosen}"):
            DEEPSEEK_V3.read({**config, "num_experts_per_tok": chosen, "norm_topk_prob": normalised})


@pytest.mark.parametrize(
    ("groups", "kept", "chosen", "said"),
    [
        (8, 3, 6, "chooses 6 experts of 3 groups: .* sum of its best 2 .*, deepseek_v2 always by its best 1"),
        (12, 3, 4, r"12 experts in 12 groups \(n_group\): 3 of them \(topk_group\) do not hold the 4"),
        (5, 2, 3, r"12 experts in 5 groups \(n_group\)"),
    ],
    ids=["DeepSeek-V2", "too few experts", "uneven groups"],
)
def test_rejects_other_limits_by_their_numbers(groups, kept, chosen, said):
    with pytest.raises(UserError, match=said):
        DEEPSEEK_V2.read(config_of("deepseek_v2", groups, kept, chosen))
