"""Megatron's shards as slices of Hugging Face tensors, written for the tests alone.

Block numbers come from the layout by the test's own arithmetic, never from ``layer_number``, which is under test.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.oracle import Shape

Piece = tuple[str, slice, str, tuple[slice, ...]]
"""(Megatron parameter, its rows, Hugging Face name, the slices of that tensor)."""


@dataclass(frozen=True)
class Layout:
    """tp x cp x pp x vp, the rest data parallel. Even, unless ``counts`` tells the layers of every chunk."""

    tp: int = 1
    pp: int = 1
    vp: int = 1
    dp: int = 1
    flags: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    """Layers of each chunk in the order a token passes them, worked out by hand for the flags that ask for it."""
    cp: int = 1

    @property
    def world(self) -> int:
        return self.tp * self.cp * self.pp * self.dp

    @property
    def name(self) -> str:
        parts = [f"{axis}{getattr(self, axis)}" for axis in ("tp", "cp", "pp", "vp", "dp") if getattr(self, axis) > 1]
        return " ".join([*(parts or ["one"]), *(flag.removeprefix("--") for flag in self.flags)])

    def all_flags(self) -> list[str]:
        flags = ["--tensor-model-parallel-size", str(self.tp), "--pipeline-model-parallel-size", str(self.pp)]
        if self.vp > 1 and "--pipeline-model-parallel-layout" not in self.flags:
            flags += ["--num-virtual-stages-per-pipeline-rank", str(self.vp)]
        if self.cp > 1:
            flags += ["--context-parallel-size", str(self.cp)]
        return flags + list(self.flags)

    def first_block(self, layers: int, pp_rank: int, chunk: int) -> int:
        """0-based global index of the first block of a chunk."""
        if self.counts:
            assert (len(self.counts), sum(self.counts)) == (self.pp * self.vp, layers)
            return sum(self.counts[: chunk * self.pp + pp_rank])
        return (chunk * self.pp + pp_rank) * (layers // (self.pp * self.vp))


def pieces(name: str, layout: Layout, shape: Shape, tp_rank: int, pp_rank: int, chunk: int) -> Iterator[Piece]:
    """How one Megatron parameter of a chunk maps onto Hugging Face tensors."""
    everything = slice(None)

    def share(size: int) -> slice:
        return slice(tp_rank * size // layout.tp, (tp_rank + 1) * size // layout.tp)

    if name == "embedding.word_embeddings.weight":
        yield name, everything, "model.embed_tokens.weight", (share(shape.vocab), everything)
        return
    if name == "output_layer.weight":
        yield name, everything, "lm_head.weight", (share(shape.vocab), everything)
        return
    if name.startswith("decoder.final_layernorm.collapse."):
        yield name, everything, name.replace("decoder.final_layernorm.collapse.", "streams_head."), (everything,)
        return
    if name in ("decoder.final_layernorm.weight", "decoder.final_layernorm.norm.weight"):
        yield name, everything, "model.norm.weight", (everything,)
        return
    if name.startswith("decoder.shared_gains."):
        yield name, everything, name.removeprefix("decoder."), (everything,)
        return
    _, _, local, rest = name.split(".", 3)
    prefix = f"model.layers.{layout.first_block(shape.layers, pp_rank, chunk) + int(local)}."
    d, per_group = shape.head_dim, shape.heads // shape.groups
    simple = {
        "input_layernorm.weight": ("input_layernorm.weight", (everything,)),
        "pre_mlp_layernorm.weight": ("post_attention_layernorm.weight", (everything,)),
        "self_attention.linear_qkv.layer_norm_weight": ("input_layernorm.weight", (everything,)),
        "mlp.linear_fc1.layer_norm_weight": ("post_attention_layernorm.weight", (everything,)),
        "self_attention.linear_proj.weight": ("self_attn.o_proj.weight", (everything, share(shape.heads * d))),
        "mlp.linear_fc2.weight": ("mlp.down_proj.weight", (everything, share(shape.ffn))),
        "self_attn_bda.norm.weight": ("attn_out_norm.weight", (everything,)),
        "mlp_bda.norm.weight": ("mlp_out_norm.weight", (everything,)),
        "self_attn_bda.scale": ("attn_scale", (everything,)),
        "mlp_bda.scale": ("mlp_scale", (everything,)),
    }
    for branch, source in (("self_attn_bda.", "attn_streams."), ("mlp_bda.", "mlp_streams.")):
        for part in ("static", "weight", "gates", "base"):
            simple.setdefault(branch + part, (source + part, (everything,)))
    if rest in simple:
        target, where = simple[rest]
        yield name, everything, prefix + target, where
    elif rest == "mlp.linear_fc1.weight":
        part = shape.ffn // layout.tp
        yield name, slice(0, part), prefix + "mlp.gate_proj.weight", (share(shape.ffn), everything)
        yield name, slice(part, 2 * part), prefix + "mlp.up_proj.weight", (share(shape.ffn), everything)
    elif rest == "self_attention.linear_qkv.weight":
        groups = range(shape.groups)[share(shape.groups)]
        for index, group in enumerate(groups):
            row = index * (per_group + 2) * d
            q, k, v = row + per_group * d, row + (per_group + 1) * d, row + (per_group + 2) * d
            heads = slice(group * per_group * d, (group + 1) * per_group * d)
            rows = slice(group * d, (group + 1) * d)
            yield name, slice(row, q), prefix + "self_attn.q_proj.weight", (heads, everything)
            yield name, slice(q, k), prefix + "self_attn.k_proj.weight", (rows, everything)
            yield name, slice(k, v), prefix + "self_attn.v_proj.weight", (rows, everything)
    else:
        raise AssertionError(f"no mapping for {name}")


def assemble(parts: list[list[tuple[str, tuple[slice, ...], Tensor]]], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Full Hugging Face tensors from every rank's pieces; AssertionError where one is missing or ranks disagree."""
    full = {name: torch.full_like(tensor, float("nan")) for name, tensor in like.items()}
    for rank, rank_parts in enumerate(parts):
        for name, where, tensor in rank_parts:
            held = full[name][where]
            agree = torch.isnan(held).all() or torch.allclose(held, tensor.float(), rtol=0, atol=1e-6)
            assert agree, f"rank {rank} disagrees about {name}"
            full[name][where] = tensor.float()
    for name, tensor in full.items():
        assert not torch.isnan(tensor).any(), f"no rank holds all of {name}"
    return full
