"""The model at a layout against the vectors: the ranks' work, and the differences."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.distributed.engine import MODEL_FLAGS, Engine, shape_flags, start_megatron
from tests.distributed.mapping import Layout, assemble
from tests.oracle import Shape

VECTORS = Path(__file__).parents[1] / "vectors" / "lns_mha.safetensors"
SHAPE = Shape()
SP, DISTRIBUTED = ("--sequence-parallel",), ("--use-distributed-optimizer",)
FULL = ("--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1")


def first(layers: int) -> tuple[str, ...]:
    return ("--decoder-first-pipeline-num-layers", str(layers))


def init_weights(vectors: dict) -> dict:
    return {key.removeprefix("mha.init."): value for key, value in vectors.items() if key.startswith("mha.init.")}


def worker(_rank: int, layout: Layout) -> dict:
    vectors = load_file(VECTORS)
    batch = ["--micro-batch-size", "1", "--global-batch-size", "2"]
    args = start_megatron([*MODEL_FLAGS, *shape_flags(SHAPE, 32), *batch, *layout.all_flags()])
    results = {}
    for scheme in ("pre_ln", "lns"):
        engine = Engine(args, layout, SHAPE, scheme, init_policy="normal")
        engine.load(init_weights(vectors))
        result = engine.forward_backward(vectors["tokens"][0], vectors["labels"][0])
        result["losses"] = engine.train(vectors["tokens"], vectors["labels"])
        result["params"] = engine.parts("data")
        results[scheme] = result
    return results


def wide(held: dict, dp: int, cp: int, layout: Layout) -> torch.Tensor:
    return torch.cat([held[dp, cp, tp] for tp in range(layout.tp)], dim=-1)


def in_sequence(parts: list[torch.Tensor]) -> torch.Tensor:
    """[b, s, v] of the context-parallel ranks' [b, s/cp, v]: rank r has the chunks r and 2 * cp - 1 - r."""
    chunks = [part.chunk(2, dim=1) for part in parts] if len(parts) > 1 else [(parts[0],)]
    return torch.cat([*(first for first, *_ in chunks), *(two[1] for two in reversed(chunks) if len(two) > 1)], dim=1)


def full_logits(results: list[dict], layout: Layout) -> torch.Tensor:
    """[b, s, v] from the ranks of the last stage: vocabulary over TP, chunks of a sequence over CP, sequences over DP."""
    held = {(r["dp_rank"], r["cp_rank"], r["tp_rank"]): r["logits"] for r in results if "logits" in r}
    rows = [in_sequence([wide(held, dp, cp, layout) for cp in range(layout.cp)]) for dp in range(layout.dp)]
    return torch.stack(rows, dim=1).flatten(0, 1)  # sequence i of a batch went to replica i % dp


def compare(results: list[dict], layout: Layout, vectors: dict, scheme: str) -> dict[str, float]:
    """Largest absolute differences from the vectors."""
    weights = init_weights(vectors)
    grads = assemble([r["grad"] for r in results], weights)
    params = assemble([r["params"] for r in results], weights)
    differences = {name: (params[name] - vectors[f"mha.{scheme}.adamw3.{name}"]).abs().flatten() for name in params}
    moved = torch.cat(list(differences.values()))
    last = [r for r in results if "loss" in r]
    loss = sum(r["loss"] for r in last) / len(last)
    return {
        "logits": float((full_logits(results, layout) - vectors[f"mha.{scheme}.logits"]).abs().max()),
        "loss": abs(loss - float(vectors[f"mha.{scheme}.loss"])),
        "grad": max(float((grads[n] - vectors[f"mha.{scheme}.grad.{n}"]).abs().max()) for n in grads),
        "losses": max(
            abs(a - float(b)) for r in last for a, b in zip(r["losses"], vectors[f"mha.{scheme}.losses"], strict=True)
        ),
        "adamw3 max": float(moved.max()),
        "adamw3 above 1e-4": int((moved > 1e-4).sum()),
    }


def within_tolerance(found: dict[str, float], adam: float = 2e-3) -> bool:
    """adam: what one element may differ by after three steps; elements with gradients near 1e-8 amplify rounding."""
    return (
        found["logits"] <= 1e-5
        and found["loss"] <= 1e-5
        and found["grad"] <= 2e-6
        and found["losses"] <= 1e-5
        and found["adamw3 max"] <= adam
        and found["adamw3 above 1e-4"] <= 20
    )
