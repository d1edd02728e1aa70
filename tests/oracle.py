"""An independent Llama in plain PyTorch, Hugging Face names, no Megatron import: what the Megatron model is compared with.

Written from the formulas (RMSNorm, RoPE with half rotation, SwiGLU, LayerNorm Scaling), and itself compared with vectors
that a third implementation computed in float64 (tests/vectors).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """The model of the test vectors."""

    layers: int = 8
    hidden: int = 64
    ffn: int = 176
    heads: int = 4
    groups: int = 4
    vocab: int = 128
    theta: float = 10000.0
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def block_factor(scheme: str, block: int) -> float:
    """The factor of both input norms of a block, 1-based over the whole model."""
    return {"pre_ln": 1.0, "lns": 1.0 / math.sqrt(block)}[scheme]


def rms_norm(x: Tensor, gamma: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gamma


def rotate(x: Tensor, theta: float) -> Tensor:
    """RoPE on [b, heads, s, d]."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=x.dtype) / half)
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attention(x: Tensor, w: Weights, prefix: str, shape: Shape) -> Tensor:
    b, s, _ = x.shape
    split = lambda y, n: y.view(b, s, n, shape.head_dim).transpose(1, 2)  # noqa: E731
    q = rotate(split(x @ w[prefix + "q_proj.weight"].T, shape.heads), shape.theta)
    k = rotate(split(x @ w[prefix + "k_proj.weight"].T, shape.groups), shape.theta)
    v = split(x @ w[prefix + "v_proj.weight"].T, shape.groups)
    repeat = shape.heads // shape.groups
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    scores = q @ k.transpose(-1, -2) / math.sqrt(shape.head_dim)
    scores = scores.masked_fill(torch.ones(s, s, dtype=torch.bool).triu(1), float("-inf"))
    out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, s, -1)
    return out @ w[prefix + "o_proj.weight"].T


def mlp(x: Tensor, w: Weights, prefix: str) -> Tensor:
    return (F.silu(x @ w[prefix + "gate_proj.weight"].T) * (x @ w[prefix + "up_proj.weight"].T)) @ w[
        prefix + "down_proj.weight"
    ].T


def forward(
    w: Weights, tokens: Tensor, scheme: str, shape: Shape, factor: Callable[[str, int], float] = block_factor
) -> tuple[Tensor, list[Tensor]]:
    """tokens [b, s] -> logits [b, s, vocab] and the stream before block 1 and after each block."""
    x = w["model.embed_tokens.weight"][tokens]
    stream = [x]
    for block in range(1, shape.layers + 1):
        prefix = f"model.layers.{block - 1}."
        s = factor(scheme, block)
        normed = s * rms_norm(x, w[prefix + "input_layernorm.weight"], shape.eps)
        x = x + attention(normed, w, prefix + "self_attn.", shape)
        normed = s * rms_norm(x, w[prefix + "post_attention_layernorm.weight"], shape.eps)
        x = x + mlp(normed, w, prefix + "mlp.")
        stream.append(x)
    return rms_norm(x, w["model.norm.weight"], shape.eps) @ w["lm_head.weight"].T, stream


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def run(weights: Weights, tokens: Tensor, labels: Tensor, scheme: str, shape: Shape, lr: float = 1e-2) -> dict:
    """Logits, stream, loss, gradients of batch 0, then AdamW over all batches (tokens, labels: [n, b, s])."""
    w = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    optimizer = torch.optim.AdamW(w.values(), lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    result: dict = {"losses": []}
    for step in range(len(tokens)):
        optimizer.zero_grad()
        logits, stream = forward(w, tokens[step], scheme, shape)
        loss = loss_of(logits, labels[step])
        loss.backward()
        if step == 0:
            result |= {"logits": logits.detach(), "hidden": torch.stack(stream).detach(), "loss": loss.detach()}
            result["grad"] = {name: tensor.grad.clone() for name, tensor in w.items()}
        result["losses"].append(loss.item())
        optimizer.step()
    result["params"] = {name: tensor.detach() for name, tensor in w.items()}
    return result
