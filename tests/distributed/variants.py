"""Every architecture under LNS in one worker: seeded weights by global name, norms measured, schemes held together.

Nothing here asks Megatron for a layer number: which global layer or expert a parameter belongs to comes from the test's
own arithmetic over the layout, and a parameter's values from its global name alone. So the same model stands at every
layout, without a checkpoint.
"""

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.distributed.engine import MODEL_FLAGS, Engine, shape_flags, start_megatron
from tests.distributed.mapping import Layout
from tests.oracle import Shape

SHAPE = Shape(layers=4, hidden=32, ffn=64, heads=4, groups=4, vocab=64)
SEQUENCE, BATCH = 16, 2
EXPERTS = 4
UNTIE = "--untie-embeddings-and-output-weights"
SCALED = ("input_layernorm", "pre_mlp_layernorm")
SCHEMES = ("lns", "folded", "unfolded")
"""LNS; Pre-LN with gamma/sqrt(l) in its input norms; Pre-LN with the gammas of LNS."""

FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
    "self_attention.linear_qkv_down_proj.layer_norm_": "input_layernorm.",
    "linear_q_up_proj.layer_norm_": "q_layernorm.",
    "linear_kv_up_proj.layer_norm_": "kv_layernorm.",
}
"""Where Transformer Engine keeps a norm's parameters in the linear behind it -> the norm's own name elsewhere."""


@dataclass(frozen=True)
class Variant:
    """An architecture: the flags that make it, and what in it is not an input norm and so must not be scaled."""

    flags: tuple[str, ...]
    unscaled: tuple[str, ...] = ()
    """Norms of a layer beside the two input norms, named within the layer."""
    tied: bool = False


def worker_flags(variant: Variant, layout: Layout) -> list[str]:
    model = [flag for flag in MODEL_FLAGS if not (variant.tied and flag == UNTIE)]
    batch = ["--micro-batch-size", "1", "--global-batch-size", str(BATCH)]
    return [*model, *shape_flags(SHAPE, SEQUENCE), *batch, *variant.flags, *layout.all_flags()]


def values(name: str, shape: tuple[int, ...]) -> Tensor:
    """The whole tensor of a global name, whatever rank asks: matrices of a trained size, gammas far from 1."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    return 1.0 + 0.3 * drawn if len(shape) == 1 else 0.15 * drawn


class VariantEngine(Engine):
    """Engine whose weights are ``values``, for any parameter of any architecture."""

    def __init__(self, args: Any, layout: Layout, scheme: str) -> None:
        from megatron.core import mpu

        super().__init__(args, layout, SHAPE, scheme, init_policy="normal")
        self.ep_rank = mpu.get_expert_model_parallel_rank()
        self.local_experts = EXPERTS // mpu.get_expert_model_parallel_world_size()

    def global_name(self, chunk: int, name: str) -> str:
        """The name with global layer (from 1) and expert (from 0) numbers; a tied output layer is the embedding."""
        first = self.layout.first_block(SHAPE.layers, self.pp_rank, chunk) + 1
        name = re.sub(r"(?<=decoder\.layers\.)\d+", lambda found: str(first + int(found[0])), name)
        skipped = self.ep_rank * self.local_experts
        for fused, alone in FUSED_NORMS.items():
            name = name.replace(fused, alone)
        name = re.sub(r"(?<=local_experts\.)\d+", lambda found: str(skipped + int(found[0])), name)
        tied = not self.args.untie_embeddings_and_output_weights and name == "output_layer.weight"
        return "embedding.word_embeddings.weight" if tied else name

    def cut(self, name: str, shape: torch.Size, split: int | None) -> tuple[tuple[int, ...], Tensor]:
        """Shape of the whole tensor, and the index of each element of this rank's shard in it, flattened."""
        whole = list(shape)
        if split is None:
            return tuple(whole), torch.arange(shape.numel()).view(shape)
        whole[split] *= self.layout.tp
        index = torch.arange(torch.Size(whole).numel()).view(whole)
        # Gate and up are split one by one, so that each rank's shard is [gate, up] of its own columns.
        halves = index.chunk(2, dim=split) if "linear_fc1" in name else (index,)
        return tuple(whole), torch.cat([half.chunk(self.layout.tp, dim=split)[self.tp_rank] for half in halves], split)

    def shards(self) -> list[tuple[str, torch.nn.Parameter, tuple[int, ...], Tensor]]:
        """(global name, parameter, whole shape, indices) of what this rank holds."""
        found = []
        for chunk, name, parameter in self.parameters():
            split = parameter.partition_dim if getattr(parameter, "tensor_model_parallel", False) else None
            split = None if self.layout.tp == 1 else split
            found.append((self.global_name(chunk, name), parameter, *self.cut(name, parameter.shape, split)))
        return found

    def fill(self, change: Callable[[str, Tensor], Tensor]) -> None:
        """Give every parameter its values, changed by name."""
        with torch.no_grad():
            for name, parameter, whole, index in self.shards():
                parameter.copy_(change(name, values(name, whole)).flatten()[index])
        self.optimizer.reload_model_params()

    def fill_matrices(self) -> None:
        """Their values to matrices only: vectors keep what the model's initialisation gave them."""
        with torch.no_grad():
            for name, parameter, whole, index in self.shards():
                if parameter.dim() > 1:
                    parameter.copy_(values(name, whole).flatten()[index])
        self.optimizer.reload_model_params()

    def parts(self, attribute: str) -> Any:
        return [
            (name, whole, index, getattr(parameter, attribute).detach().float().clone())
            for name, parameter, whole, index in self.shards()
        ]


def layer_of(name: str) -> int | None:
    """l of a global name of a parameter or module in a layer."""
    found = re.search(r"decoder\.layers\.(\d+)\.", name + ".")
    return int(found[1]) if found else None


def folded(name: str, whole: Tensor) -> Tensor:
    """gamma/sqrt(l) for the two input norms, by the test's own l; anything else as it is."""
    local = re.sub(r"decoder\.layers\.\d+\.", "", name)
    return whole * layer_of(name) ** -0.5 if local in [f"{norm}.weight" for norm in SCALED] else whole


def measure_norms(engine: VariantEngine, seen: dict[str, list[float]]) -> list[Any]:
    """Hooks that take every norm's gain over gamma * x/rms(x), a number a call, under its global name."""

    def watch(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple, kwargs: dict, output: Tensor) -> None:
            x = (inputs[0] if inputs else next(iter(kwargs.values()))).detach().double()
            plain = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * module.weight.detach().double()
            y = output.detach().double()
            gain = float((plain * y).sum() / (plain * plain).sum())
            assert (y - gain * plain).abs().max() <= (0.05 if output.dtype == torch.bfloat16 else 1e-5), name
            seen.setdefault(name, []).append(gain)

        return hook

    handles = []
    for chunk, model in enumerate(engine.model):
        for name, module in model.named_modules():
            plain = name.removeprefix("module.").removeprefix("module.")
            if "Norm" in type(module).__name__ and next(module.parameters(recurse=False), None) is not None:
                handles.append(module.register_forward_hook(watch(engine.global_name(chunk, plain)), with_kwargs=True))
    return handles


def tokens() -> Tensor:
    return torch.randint(0, SHAPE.vocab, (BATCH, SEQUENCE), generator=torch.Generator().manual_seed(7))


def run_variant(
    _rank: int, variant: Variant, layout: Layout, mutate: Callable[[], None] | None = None, schemes: tuple = SCHEMES
) -> dict:
    """One forward and backward of each of SCHEMES on the same weights; under LNS every norm is measured."""
    from megatron_cod import model

    if mutate is not None:
        mutate()
        model.refuse_wrong_depth = lambda chunks, factor: chunks
    args = start_megatron(worker_flags(variant, layout))
    result: dict[str, Any] = {"norms": {}, "carriers": []}
    for scheme in schemes:
        engine = VariantEngine(args, layout, "lns" if scheme == "lns" else "pre_ln")
        engine.fill(folded if scheme == "folded" else lambda _, whole: whole)
        handles = measure_norms(engine, result["norms"]) if scheme == "lns" else []
        result[scheme] = engine.forward_backward(tokens(), tokens().roll(-1, -1))
        for handle in handles:
            handle.remove()
        if scheme == "lns":
            result["carriers"] = carriers(engine)
    return result


def carriers(engine: VariantEngine) -> list[str]:
    """Global names of the modules that carry a depth factor."""
    from megatron_cod.schemes.depth import DepthScaled

    return [
        engine.global_name(chunk, name.removeprefix("module.").removeprefix("module."))
        for chunk, model in enumerate(engine.model)
        for name, module in model.named_modules()
        if isinstance(module, DepthScaled)
    ]


def gradients(results: list[dict], scheme: str) -> dict[str, Tensor]:
    """Whole gradients by global name; AssertionError where a part is missing or ranks disagree."""
    full: dict[str, Tensor] = {}
    for result in results:
        for name, whole, index, piece in result[scheme]["grad"]:
            flat = full.setdefault(name, torch.full((torch.Size(whole).numel(),), float("nan")))
            held = flat[index]
            assert held.isnan().all() or torch.allclose(held, piece, rtol=1e-4, atol=1e-6), f"ranks disagree: {name}"
            flat[index] = piece
    assert not any(flat.isnan().any() for flat in full.values())
    return full


def relative(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of any tensor, over that tensor's own largest element: names must be the same."""
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    return max(float((one[name] - other[name]).abs().max() / other[name].abs().max().clamp_min(1e-6)) for name in one)
