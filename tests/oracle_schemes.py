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
    alpha: float = 1.0
    """CompleteP's."""
    base_layers: int = 2
    base_hidden: int = 16
    """Of the model that CompleteP's rates are for."""
    streams: int = 4
    """Of hyper-connections and mHC."""
    static: bool = False
    """Hyper-connections that do not depend on the token."""

    def depth(self, shape: Shape) -> float:
        """CompleteP's m_L."""
        return shape.layers / self.base_layers

    def width(self, shape: Shape) -> float:
        """CompleteP's m_N."""
        return shape.hidden / self.base_hidden

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


def hyper_weights(w: Weights, p: str, streams: Tensor, variant: Variant, shape: Shape) -> tuple[Tensor, ...]:
    """Hyper-connections: read [b, s, n], write [b, s, n], mix [b, s, n, n], of streams [b, s, n, h]."""
    n = variant.streams
    table = w[p + "static"].reshape(n, n + 2).expand(*streams.shape[:2], n, n + 2)
    if not variant.static:
        normed = streams / torch.sqrt(streams.pow(2).mean(-1, keepdim=True) + shape.eps)
        wide = torch.tanh(normed @ w[p + "weight"].T)
        s_mix, s_write = w[p + "gates"]
        table = table + torch.cat([s_mix * wide[..., :1], s_write * wide[..., 1:2], s_mix * wide[..., 2:]], dim=-1)
    return table[..., 0], table[..., 1], table[..., 2:]


def mhc_read(w: Weights, p: str, streams: Tensor, n: int, shape: Shape) -> Tensor:
    """sigmoid(s x W + c) of mHC's first n rows, [b, s, n]."""
    flat = streams.flatten(2)
    normed = flat / torch.sqrt(flat.pow(2).mean(-1, keepdim=True) + shape.eps)
    return torch.sigmoid(w[p + "gates"][0] * (normed @ w[p + "weight"][:n].T) + w[p + "base"][:n]) + 1e-6


def mhc_weights(w: Weights, p: str, streams: Tensor, variant: Variant, shape: Shape) -> tuple[Tensor, ...]:
    """The same of mHC: its mixing is made doubly stochastic in 20 rounds, each rows first and then columns."""
    n, flat = variant.streams, streams.flatten(2)
    normed = flat / torch.sqrt(flat.pow(2).mean(-1, keepdim=True) + shape.eps)
    write = 2 * torch.sigmoid(w[p + "gates"][1] * (normed @ w[p + "weight"][n : 2 * n].T) + w[p + "base"][n : 2 * n])
    mix = w[p + "gates"][2] * (normed @ w[p + "weight"][2 * n :].T) + w[p + "base"][2 * n :]
    mix = mix.reshape(*mix.shape[:2], n, n).softmax(-1) + 1e-6
    for round in range(20):
        if round:
            mix = mix / (mix.sum(-1, keepdim=True) + 1e-6)
        mix = mix / (mix.sum(-2, keepdim=True) + 1e-6)
    return mhc_read(w, p, streams, n, shape), write, mix


def streams_forward(w: Weights, tokens: Tensor, variant: Variant, shape: Shape) -> Tensor:
    """tokens [b, s] -> logits [b, s, vocab] of a model with n streams."""
    weights = {"hyper_connections": hyper_weights, "mhc": mhc_weights}[variant.scheme]
    streams = w["model.embed_tokens.weight"][tokens].unsqueeze(2).repeat(1, 1, variant.streams, 1)
    for block in range(shape.layers):
        p = f"model.layers.{block}."
        for which, gamma in (("attn", "input_layernorm.weight"), ("mlp", "post_attention_layernorm.weight")):
            read, write, mix = weights(w, f"{p}{which}_streams.", streams, variant, shape)
            y = rms_norm((read.unsqueeze(-1) * streams).sum(2), w[p + gamma], shape.eps)
            y = attention(y, w, p + "self_attn.", shape) if which == "attn" else mlp(y, w, p + "mlp.")
            mixed = sum(mix[..., i, :].unsqueeze(-1) * streams[:, :, i : i + 1] for i in range(variant.streams))
            streams = mixed + write.unsqueeze(-1) * y.unsqueeze(2)
    if variant.scheme == "mhc":
        streams = mhc_read(w, "streams_head.", streams, variant.streams, shape).unsqueeze(-1) * streams
    return rms_norm(streams.sum(2), w["model.norm.weight"], shape.eps) @ w["lm_head.weight"].T


def forward(w: Weights, tokens: Tensor, variant: Variant, shape: Shape, step: int = 0) -> Tensor:
    """tokens [b, s] -> logits [b, s, vocab]."""
    scheme, depth = variant.scheme, shape.layers
    if scheme in ("hyper_connections", "mhc"):
        return streams_forward(w, tokens, variant, shape)
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
            elif scheme == "complete_p":
                x = x + warm * variant.depth(shape) ** -variant.alpha * branch(norm(x), which)
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
    if scheme == "complete_p":
        x = x / variant.width(shape)
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
    if variant.scheme in ("hyper_connections", "mhc"):
        own = stream_parameters(variant, shape, drawn)
    if variant.scheme == "layer_rope":
        weights = {name: tensor for name, tensor in weights.items() if "layernorm" not in name}
    kept = {
        n: t for n, t in weights.items() if n != "model.norm.weight" or variant.scheme not in ("post_ln", "deepnorm")
    }
    return kept | own


def stream_parameters(variant: Variant, shape: Shape, drawn: Callable[..., Tensor]) -> Weights:
    """Random numbers of hyper-connections or mHC, away from their start values, so that streams and tokens differ."""
    n, own = variant.streams, {}
    for block in range(shape.layers):
        for which in ("attn", "mlp"):
            p = f"model.layers.{block}.{which}_streams."
            if variant.scheme == "mhc":
                own[p + "weight"] = drawn((n * (n + 2), n * shape.hidden), 0.0)
                own[p + "base"] = drawn(n * (n + 2), 0.0)
                own[p + "gates"] = drawn(3, 0.3)
                continue
            # Near the start: farther away, fp32 loses 3 digits by block 8.
            read, mix = 1 / n + 0.25 * drawn((n, 1), 0.0), torch.eye(n) + 0.15 * drawn((n, n), 0.0)
            own[p + "static"] = torch.cat([read, drawn((n, 1), 1.0), mix], 1).flatten()
            if not variant.static:
                own[p + "weight"] = 0.2 * drawn((n + 2, shape.hidden), 0.0)
                own[p + "gates"] = 0.3 * drawn(2, 0.3)
    if variant.scheme == "mhc":
        own |= {"streams_head.weight": drawn((n, n * shape.hidden), 0.0), "streams_head.base": drawn(n, 0.0)}
        own["streams_head.gates"] = drawn(1, 0.3)
    return own


def adam(name: str, tensor: Tensor, variant: Variant, shape: Shape, eps: float, decay: float) -> dict[str, float]:
    """Rate, decay and eps of a parameter; CompleteP's are those of its paper's table 1."""
    found = {"lr": 1e-2, "weight_decay": decay if tensor.dim() > 1 else 0.0, "eps": eps}
    if variant.scheme != "complete_p":
        return found
    m_l, m_n, alpha = variant.depth(shape), variant.width(shape), variant.alpha
    found["eps"] /= m_n
    if name.startswith("model.layers."):
        found["eps"] /= m_l**alpha
        found["lr"] *= m_l ** (alpha - 1)
        if tensor.dim() > 1:
            found["lr"] /= m_n
            found["weight_decay"] *= m_n
    return found


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
    groups = [{"params": [tensor], **adam(name, tensor, variant, shape, eps, decay)} for name, tensor in w.items()]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
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
