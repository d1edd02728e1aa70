"""The rival schemes and initialisations in plain PyTorch, from their papers' formulas; the parts are the oracle's.

Names of parameters that Llama has not: ``attn_out_norm.weight`` and ``mlp_out_norm.weight`` (Sandwich-LN's N'),
``attn_scale`` and ``mlp_scale`` (LayerScale's vector, SkipInit's number), ``shared_gains.SITE.gamma`` and ``.numbers``
(LayerRoPE's gains and a, b, a_rot, b_rot, which all blocks share).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.oracle import Shape, Weights, attention, loss_of, mlp, rms_norm


@dataclass(frozen=True)
class Variant:
    """A scheme with what the user may choose."""

    scheme: str
    placement: str = "both"
    exponent: float = 0.5
    post: int = 2
    """Mix-LN's K; a quarter of 8 blocks."""
    warmup: int | None = None
    base: float = 100.0
    """LayerRoPE's."""
    peri: bool = False
    """LayerRoPE's output gains are weights of norms behind the branches."""

    def warm(self, block: int, step: int) -> float:
        """ProRes' weight of a branch."""
        return 1.0 if self.warmup is None else min(1.0, step / (self.warmup * block))


Join = Callable[[Tensor, Callable[[Tensor], Tensor], str, str], Tensor]


def shared_gain(w: Weights, site: str, block: int, base: float) -> Tensor:
    """LayerRoPE's gain [h] of a site in a block, from 1: gamma as complex numbers times exp(r + i theta)."""
    gamma = torch.view_as_complex(w[f"shared_gains.{site}.gamma"].reshape(-1, 2).contiguous())
    a, b, a_rot, b_rot = w[f"shared_gains.{site}.numbers"]
    pairs = len(gamma)
    theta = torch.exp(a_rot) * block**b_rot * base ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    turned = gamma * torch.polar(torch.exp(a) * block**b * torch.ones_like(theta), theta)
    return torch.view_as_real(turned).reshape(-1)


def forward(w: Weights, tokens: Tensor, variant: Variant, shape: Shape, step: int = 0) -> Tensor:
    """tokens [b, s] -> logits [b, s, vocab]."""
    scheme, depth = variant.scheme, shape.layers
    x = w["model.embed_tokens.weight"][tokens]
    for block in range(1, depth + 1):
        p = f"model.layers.{block - 1}."
        s, warm = block**-variant.exponent, variant.warm(block, step)

        def branch(y: Tensor, which: str, p: str = p) -> Tensor:
            return attention(y, w, p + "self_attn.", shape) if which == "attn" else mlp(y, w, p + "mlp.")

        for which, gamma in (("attn", "input_layernorm.weight"), ("mlp", "post_attention_layernorm.weight")):
            if scheme == "layer_rope":
                site = "attention" if which == "attn" else "mlp"
                g_in, g_out = (shared_gain(w, f"{site}_{end}", block, variant.base) for end in ("in", "out"))
                y = branch(rms_norm(x, g_in, shape.eps), which)
                x = x + warm * (rms_norm(y, g_out, shape.eps) if variant.peri else g_out * y)
                continue
            gamma = w[p + gamma]
            norm = lambda y, gamma=gamma: rms_norm(y, gamma, shape.eps)  # noqa: E731
            place = "attention" if which == "attn" else "mlp"
            if scheme == "pre_ln" or (scheme == "mix_ln" and block > variant.post):
                x = x + warm * branch(norm(x), which)
            elif scheme == "lns" and variant.placement == "branch_output":
                x = x + warm * s * branch(norm(x), which)
            elif scheme == "lns":
                x = x + warm * branch((s if variant.placement in ("both", place) else 1.0) * norm(x), which)
            elif scheme in ("post_ln", "mix_ln"):
                x = norm(x + warm * branch(x, which))
            elif scheme == "deepnorm":
                x = norm((2 * depth) ** (1 / 4) * x + warm * branch(x, which))
            elif scheme == "sandwich_ln":
                x = x + warm * rms_norm(branch(norm(x), which), w[f"{p}{which}_out_norm.weight"], shape.eps)
            elif scheme in ("layerscale", "skipinit"):
                x = x + warm * w[f"{p}{which}_scale"] * branch(norm(x), which)
            else:
                raise ValueError(scheme)
    if scheme not in ("post_ln", "deepnorm"):
        x = rms_norm(x, w["model.norm.weight"], shape.eps)
    return x @ w["lm_head.weight"].T


def parameters(weights: Weights, variant: Variant, shape: Shape) -> Weights:
    """The start weights of a scheme: Llama's without the final norm where there is none, and the scheme's own, random."""
    generator = torch.Generator().manual_seed(7)
    drawn = lambda size, mean: mean + 0.2 * torch.randn(size, generator=generator)  # noqa: E731
    own: Weights = {}
    if variant.scheme == "layer_rope":
        for site in ("attention_in", "mlp_in", "attention_out", "mlp_out"):
            own[f"shared_gains.{site}.gamma"] = drawn(shape.hidden, 1.0)
            own[f"shared_gains.{site}.numbers"] = torch.tensor([0.0, -0.5, 0.0, -0.5]) + drawn(4, 0.0)
    for block in range(shape.layers):
        for which in ("attn", "mlp"):
            p = f"model.layers.{block}.{which}"
            if variant.scheme == "sandwich_ln":
                own[p + "_out_norm.weight"] = drawn(shape.hidden, 1.0)
            if variant.scheme in ("layerscale", "skipinit"):
                own[p + "_scale"] = drawn(shape.hidden if variant.scheme == "layerscale" else 1, 0.6)
    if variant.scheme == "layer_rope":
        weights = {name: tensor for name, tensor in weights.items() if "layernorm" not in name}
    kept = {
        n: t for n, t in weights.items() if n != "model.norm.weight" or variant.scheme not in ("post_ln", "deepnorm")
    }
    return kept | own


def run(
    weights: Weights,
    tokens: Tensor,
    labels: Tensor,
    variant: Variant,
    shape: Shape,
    step: int = 0,
    eps: float = 1e-8,
    decay: float = 0.0,
) -> dict:
    """In float64: logits, loss and gradients of batch 0, then 3 AdamW steps (tokens, labels: [n, b, s]).

    step: how many steps the weights have behind them. eps, decay: Adam's; vectors and numbers are not decayed.
    """
    w = {name: tensor.double().detach().clone().requires_grad_() for name, tensor in weights.items()}
    groups = [
        {"params": [tensor for tensor in w.values() if tensor.dim() > 1], "weight_decay": decay},
        {"params": [tensor for tensor in w.values() if tensor.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=eps)
    result: dict = {"losses": []}
    for index in range(len(tokens)):
        optimizer.zero_grad()
        logits = forward(w, tokens[index], variant, shape, step + index)
        loss = loss_of(logits, labels[index])
        loss.backward()
        if index == 0:
            result |= {"logits": logits.detach(), "loss": float(loss.detach())}
            result["grad"] = {name: tensor.grad.clone() for name, tensor in w.items()}
        result["losses"].append(float(loss.detach()))
        optimizer.step()
    result["params"] = {name: tensor.detach() for name, tensor in w.items()}
    return result


def initial_std(policy: str, kind: str, block: int, shape: Shape, std: float) -> float:
    """Standard deviation that ``kind`` (q, k, v, o, gate, up or down) of a block starts with, 1-based block."""
    depth, d = shape.layers, shape.head_dim
    outputs = kind in ("o", "down")
    if policy == "normal" or (policy in ("scaled", "depth_scaled") and not outputs):
        return std
    if policy == "scaled":
        return std / math.sqrt(2 * depth)
    if policy == "depth_scaled":
        return std / math.sqrt(2 * block)
    sides = {
        "q": (shape.hidden, shape.heads * d),
        "k": (shape.hidden, shape.groups * d),
        "v": (shape.hidden, shape.groups * d),
        "o": (shape.heads * d, shape.hidden),
        "gate": (shape.hidden, shape.ffn),
        "up": (shape.hidden, shape.ffn),
        "down": (shape.ffn, shape.hidden),
    }[kind]
    gain = 1.0 if kind in ("q", "k") else (8 * depth) ** (-1 / 4)
    return gain * math.sqrt(2 / sum(sides))
