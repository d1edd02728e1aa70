"""A model's architecture, independent of Hugging Face's and Megatron's names."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

LATENT, EXPERTS, QK_NORM = "latent attention", "experts", "norms of queries and keys"
QKV_BIAS, BIASES = "biases of q, k, v", "biases"
UNROTATED, PARTIAL_ROPE = "layers without RoPE", "RoPE on a part of each head"
BRANCH_NORMS, GEGLU = "norms behind the branches", "GeGLU"
LINEAR, LLAMA3, YARN = "linear RoPE", "llama3 RoPE", "yarn RoPE"
SCALED_ROPE = frozenset((LINEAR, LLAMA3, YARN))
"""Features that a stock model may have, or not."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions. kind: default, linear, llama3, yarn."""

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    original: int = 4096
    """Of yarn: tokens before the scaling."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """Of yarn: the range that is corrected ends at whole channels."""
    share: float = 1.0
    """Of a head's channels, the first ones, that have positions."""

    @property
    def attention_factor(self) -> float:
        """What yarn multiplies cosine and sine with."""
        grown = math.log(self.factor) / 10 if self.factor > 1 else 0.0
        return (1 + self.mscale * grown) / (1 + self.mscale_all_dim * grown)


@dataclass(frozen=True)
class Latent:
    """Multi-latent attention (DeepSeek): ranks and head sizes in channels."""

    kv_rank: int
    nope: int
    """Channels of a query and key head without positions."""
    rope: int
    """Channels of a query and key head with rotary positions; the keys' are shared by all heads."""
    value: int
    q_rank: int | None = None


@dataclass(frozen=True)
class Experts:
    """Mixture of experts."""

    count: int
    chosen: int
    ffn: int
    shared_ffn: int = 0
    """Of all shared experts together; 0 for none."""
    dense_layers: int = 0
    """The first so many layers have one MLP instead."""
    score: str = "softmax"
    """softmax (over the chosen), pre_softmax (over all, not normalised again) or sigmoid (with a bias for the choice)."""
    scale: float = 1.0
    groups: int = 1
    chosen_groups: int = 1


@dataclass(frozen=True)
class Multipliers:
    """What a model multiplies beside its weights."""

    embedding: float = 1.0
    attention: float | None = None
    """Products of queries and keys; None for 1/sqrt(head size)."""
    residual: float = 1.0
    """The output of each branch."""
    logits: float = 1.0


@dataclass(frozen=True)
class Architecture:
    """A decoder-only model: RMSNorm before each branch, gated MLPs, rotary positions.

    Every field is a size, or counts in ``features``; multipliers can be folded into weights of any family.
    """

    family: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    head_dim: int
    vocab: int
    """Rows of the embedding on Hugging Face's side."""
    padded_vocab: int
    """Rows on Megatron's side."""
    eps: float
    positions: int
    tied: bool = False
    qkv_bias: bool = False
    linear_bias: bool = False
    """On every projection of attention and MLP."""
    qk_norm: bool = False
    unrotated: tuple[int, ...] = ()
    """Layers (from 1) without rotary positions."""
    branch_norms: bool = False
    """An RMSNorm behind each branch, too."""
    activation: str = "silu"
    """Of the MLPs' gate: silu or gelu_tanh."""
    rope: Rope = field(default_factory=Rope)
    latent: Latent | None = None
    experts: Experts | None = None
    multipliers: Multipliers = field(default_factory=Multipliers)
    predicted: int = 0
    """Layers of multi-token prediction that are carried over, behind the last one: the model's own logits do not read
    them."""

    def is_expert_layer(self, layer: int) -> bool:
        """Whether a layer (from 1) has experts."""
        return self.experts is not None and layer > self.experts.dense_layers

    def features(self) -> frozenset[str]:
        """What sets it apart from a plain Llama, in words; a family lists those that its stock model has."""
        asked = {
            LATENT: self.latent is not None,
            EXPERTS: self.experts is not None,
            QK_NORM: self.qk_norm,
            QKV_BIAS: self.qkv_bias and not self.linear_bias,
            BIASES: self.linear_bias,
            UNROTATED: bool(self.unrotated),
            BRANCH_NORMS: self.branch_norms,
            GEGLU: self.activation == "gelu_tanh",
            PARTIAL_ROPE: self.rope.share != 1.0,
            f"{self.rope.kind} RoPE": self.rope.kind != "default",
        }
        return frozenset(name for name, has in asked.items() if has)

    def rotated(self) -> int:
        """Channels of a head that have positions."""
        return int(self.head_dim * self.rope.share)

    def dims(self) -> dict[str, int]:
        """The sizes that the mapping tables name."""
        found = {
            "hidden": self.hidden,
            "vocab": self.vocab,
            "ffn": self.ffn,
            "q": self.heads * self.head_dim,
            "kv": self.groups * self.head_dim,
            "qkv": (self.heads + 2 * self.groups) * self.head_dim,
            "gate_up": 2 * self.ffn,
            "head": self.head_dim,
            "both": 2 * self.hidden,
        }
        if self.latent is not None:
            key = self.latent.nope + self.latent.rope
            found |= {
                "q_rank": self.latent.q_rank or 0,
                "q_heads": self.heads * key,
                "kv_rank": self.latent.kv_rank,
                "kv_down": self.latent.kv_rank + self.latent.rope,
                "kv_heads": self.heads * (self.latent.nope + self.latent.value),
                "values": self.heads * self.latent.value,
            }
        if self.experts is not None:
            found |= {
                "experts": self.experts.count,
                "expert_ffn": self.experts.ffn,
                "shared_ffn": self.experts.shared_ffn,
            }
        return found
