"""The recipe that builds an architecture in Megatron, and the arguments that it comes to."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from megatron_cod.huggingface.families.architecture import Architecture, Experts, Latent, Multipliers, Rope
from megatron_cod.huggingface.families.table import get_family


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value


def recipe_of(arch: Architecture) -> dict[str, Any]:
    """The architecture as recipe keys (Megatron's argument names)."""
    recipe: dict[str, Any] = {
        "num-layers": arch.layers,
        "hidden-size": arch.hidden,
        "ffn-hidden-size": arch.ffn,
        "num-attention-heads": arch.heads,
        "max-position-embeddings": arch.positions,
        "normalization": "RMSNorm",
        "norm-epsilon": arch.eps,
        "swiglu": True,
        "disable-bias-linear": not arch.linear_bias,
        "position-embedding-type": "rope",
        "rotary-base": int(arch.rope.theta),
        "untie-embeddings-and-output-weights": not arch.tied,
        "attention-dropout": 0.0,
        "hidden-dropout": 0.0,
        "vocab-size": arch.vocab,
        "make-vocab-size-divisible-by": 1,
        "padded-vocab-size": arch.padded_vocab,
    }
    if arch.latent is None:
        recipe |= {"kv-channels": arch.head_dim}
        if arch.groups != arch.heads:
            recipe |= {"group-query-attention": True, "num-query-groups": arch.groups}
    else:
        recipe |= _latent_recipe(arch.latent, arch.rope)
    if arch.activation == "gelu_tanh":
        recipe["geglu"] = True
    if get_family(arch.family).less_one:
        recipe["apply-layernorm-1p"] = True
    if arch.qkv_bias:
        recipe["add-qkv-bias"] = True
    if arch.qk_norm:
        recipe["qk-layernorm"] = True
    if arch.unrotated:
        pattern = [int(layer in arch.unrotated) for layer in range(1, arch.layers + 1)]
        recipe["no-rope-freq"] = str(pattern).replace(" ", "")
    if arch.rope.kind == "llama3":
        recipe |= {"use-rope-scaling": True, "rope-scaling-factor": arch.rope.factor}
    if arch.rope.kind == "yarn" and arch.latent is None:
        recipe |= _yarn_recipe(arch.rope)
    if arch.rope.kind == "linear":
        recipe["rotary-seq-len-interpolation-factor"] = int(arch.rope.factor)
    if arch.rope.share != 1.0:
        recipe["rotary-percent"] = arch.rope.share
    if arch.experts is not None:
        recipe |= _experts_recipe(arch, arch.experts)
    if arch.predicted:
        recipe["mtp-num-layers"] = arch.predicted
    return recipe | _multiplier_recipe(arch.multipliers, arch)


def _multiplier_recipe(multipliers: Multipliers, arch: Architecture) -> dict[str, Any]:
    """muP's fields, at a base width that is the model's: rates and initialisation stay as they are without muP."""
    if replace(multipliers, residual=1.0) == Multipliers():
        return {}
    recipe: dict[str, Any] = {
        "use-mup": True,
        "mup-base-hidden-size": arch.hidden,
        "mup-embedding-mult": multipliers.embedding,
        "mup-output-mult": multipliers.logits,
        "mup-attn-scale-power": 0.5 if multipliers.attention is None else 1.0,
    }
    scale = (multipliers.attention or 0.0) * arch.head_dim  # of Megatron's 1/head size
    return recipe | ({"mup-base-head-dim": scale**2} if multipliers.attention is not None and scale != 1.0 else {})


def _yarn_recipe(rope: Rope) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "position-embedding-type": "yarn",
        "rotary-scaling-factor": rope.factor,
        "mscale": rope.mscale,
        "mscale-all-dim": rope.mscale_all_dim,
        "yarn-original-max-position-embeddings": rope.original,
        "yarn-beta-fast": rope.beta_fast,
        "yarn-beta-slow": rope.beta_slow,
    }
    return recipe | ({} if rope.truncate else {"no-yarn-correction-range-round-to-int": True})


def _latent_recipe(latent: Latent, rope: Rope) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "multi-latent-attention": True,
        "qk-layernorm": True,
        "kv-lora-rank": latent.kv_rank,
        "qk-head-dim": latent.nope,
        "qk-pos-emb-head-dim": latent.rope,
        "v-head-dim": latent.value,
        "rope-type": "yarn" if rope.kind == "yarn" else "rope",
        "rotary-scaling-factor": rope.factor,
        "mscale": rope.mscale,
        "mscale-all-dim": rope.mscale_all_dim,
    }
    return recipe | ({"q-lora-rank": latent.q_rank} if latent.q_rank else {})


def _experts_recipe(arch: Architecture, experts: Experts) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "num-experts": experts.count,
        "moe-router-topk": experts.chosen,
        "moe-ffn-hidden-size": experts.ffn,
        "moe-token-dispatcher-type": "alltoall",
        # Training's own choice; a loss to balance them does not change the function.
        "moe-router-load-balancing-type": "none",
        "moe-router-dtype": "fp32",
    }
    if experts.dense_layers:
        recipe["moe-layer-freq"] = f"([0]*{experts.dense_layers}+[1]*{arch.layers - experts.dense_layers})"
    if experts.shared_ffn:
        recipe["moe-shared-expert-intermediate-size"] = experts.shared_ffn
    if experts.score == "pre_softmax":
        recipe["moe-router-pre-softmax"] = True
    if experts.score == "sigmoid":
        recipe |= {"moe-router-score-function": "sigmoid", "moe-router-enable-expert-bias": True}
    if experts.scale != 1.0:
        recipe["moe-router-topk-scaling-factor"] = _whole(experts.scale)
    if experts.groups > 1:
        recipe |= {"moe-router-num-groups": experts.groups, "moe-router-group-topk": experts.chosen_groups}
    return recipe


def namespace_of(recipe: dict[str, Any]) -> argparse.Namespace:
    """Megatron's arguments for a recipe, as its own parser gives them: what a checkpoint keeps of a run; ours beside.

    Fields that Megatron derives when it validates (``group_query_attention`` is one) are as the recipe has them.
    """
    from megatron.training.arguments import add_megatron_arguments

    flags: list[str] = []
    own = {"geglu": recipe.get("geglu", False)}
    for key, value in recipe.items():
        if key in own:
            continue
        if isinstance(value, bool):
            flags += [f"--{key}"] if value else []
        elif value is not None:
            flags.append(f"--{key}={value}")
    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    return parser.parse_args(flags, argparse.Namespace(**own))


def write_recipe(
    path: Path, recipe: dict[str, Any], scheme: str, options: dict[str, Any], tokenizer: dict[str, Any]
) -> None:
    """Write the flags of an imported model: its architecture, its scheme and its tokenizer."""
    own: dict[str, Any] = {"norm-scheme": scheme}
    own |= {name.replace("_", "-"): value for name, value in options.items() if value is not None}
    length = min(int(recipe["max-position-embeddings"]), 2048)
    own |= {"seq-length": length, "no-create-attention-mask-in-dataloader": True}
    text = yaml.safe_dump({**recipe, **own, **tokenizer}, sort_keys=False)
    path.write_text(f"# The imported model; training is yours to choose: --micro-batch-size, --lr, data.\n{text}")
