"""Packed rows through a model, against each sample by itself."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from megatron_cod.data.chat.packing import Epochs
from megatron_cod.data.chat.rows import filled
from megatron_cod.data.chat.samples import Samples
from tests import oracle
from tests.distributed.engine import MODEL_FLAGS, Engine, shape_flags, start_megatron
from tests.distributed.mapping import Layout, assemble
from tests.distributed.oracle_runs import SHAPE, VECTORS, init_weights

SIZE, ROWS = 48, 4
PER_TOKEN = ("--calculate-per-token-loss",)


def samples(vocabulary: int = SHAPE.vocab) -> Samples:
    """Ten conversations of 4 to 40 tokens whose answers take from one token to nearly all of them."""
    draw = np.random.default_rng(5)
    lengths = [41, 30, 17, 22, 9, 25, 4, 12, 8, 5]
    ids = draw.integers(0, vocabulary, sum(lengths)).astype(np.int32)
    trained = np.concatenate([np.arange(n) >= draw.integers(1, n) for n in lengths])
    return Samples(ids, trained, np.concatenate([[0], np.cumsum(lengths)]))


def plan(pack: bool = True) -> list[list[int]]:
    """The samples of each row; every one is in one of them."""
    epochs = Epochs(samples().positions(), SIZE, pack=pack, seed=3)
    rows = [list(epochs(number)) for number in range(epochs.rows_an_epoch)]
    assert sorted(n for row in rows for n in row) == list(range(10))
    return rows


def worker(
    _rank: int,
    layout: Layout,
    pack: bool = True,
    mutate: Callable[[], None] | None = None,
    micro: int = 1,
    flags=PER_TOKEN,
) -> dict:
    """Per-token losses of each row on the last stage, what is reported, and the gradients, for both schemes."""
    from megatron_cod.training.data import batches

    if mutate is not None:
        mutate()
    rows = [filled(samples(), row, SIZE, 0) for row in plan(pack)]
    rows += [filled(samples(), [], SIZE, 0)] * (-len(rows) % 4)
    batch = ["--micro-batch-size", str(micro), "--global-batch-size", str(len(rows))]
    args = start_megatron([*MODEL_FLAGS, *shape_flags(SHAPE, SIZE), *batch, *flags, *layout.all_flags()])
    results = {}
    for scheme in ("pre_ln", "lns"):
        engine = Engine(args, layout, SHAPE, scheme, init_policy="normal")
        engine.load(init_weights(load_file(VECTORS)))
        results[scheme] = one_pass(engine, rows, pack, micro, batches)
    return results


def one_pass(engine: Engine, rows: list[dict], pack: bool, micro: int, batches) -> dict:
    mine = [rows[n : n + micro] for n in range(engine.dp_rank * micro, len(rows), micro * engine.layout.dp)]
    losses: list[torch.Tensor] = []

    def stream():
        return iter([{name: torch.stack([row[name] for row in some]) for name in some[0]} for some in mine])

    def step(iterator, model):
        output, loss = batches.forward_step(iterator, model, packed=pack)
        if output.dim() == 2:  # losses [b, s], and not the hidden states of an earlier stage
            losses.append(output.detach().float().cpu().reshape(-1, SIZE))
        return output, loss

    iterator = [stream() for _ in engine.model] if engine.layout.vp > 1 else stream()
    reported = engine.pass_over(iterator, step)
    result = {"grad": engine.parts("main_grad"), "dp_rank": engine.dp_rank, "micro": micro}
    if engine.last:
        result["losses"] = torch.cat(losses)
        result["reported"] = torch.stack([one["lm loss"] for one in reported]).sum(0).cpu()
    return result


def alone(scheme: str) -> tuple[list[torch.Tensor], dict, float]:
    """Each sample's losses [n] from the oracle, and gradients and mean over all answer tokens."""
    weights = {name: w.clone().requires_grad_() for name, w in init_weights(load_file(VECTORS)).items()}
    held, losses, total, count = samples(), [], 0.0, 0
    for number in range(len(held)):
        ids, trained = (torch.from_numpy(part) for part in held[number])
        logits, _ = oracle.forward(weights, ids[None, :-1].long(), scheme, SHAPE)
        loss = F.cross_entropy(logits[0], ids[1:].long(), reduction="none")
        losses.append(loss.detach())
        total, count = total + loss[trained[1:]].sum(), count + int(trained[1:].sum())
    (total / count).backward()
    return losses, {name: w.grad for name, w in weights.items()}, float(total.detach() / count)


def differences(results: list[dict], layout: Layout, scheme: str, pack: bool = True) -> dict[str, float]:
    """Largest absolute differences from ``alone``."""
    expected, gradients, mean = alone(scheme)
    last = {r["dp_rank"]: r for r in (result[scheme] for result in results) if "losses" in r}
    found, reported = [], torch.zeros(2)
    for number, row in enumerate(plan(pack)):
        group, place = divmod(number, last[0]["micro"])
        losses = last[group % layout.dp]["losses"][group // layout.dp * last[0]["micro"] + place]
        start = 0
        for sample in row:
            length = len(expected[sample])
            found.append((losses[start : start + length] - expected[sample]).abs().max())
            start += length
    for one in last.values():
        reported += one["reported"]
    full = assemble([result[scheme]["grad"] for result in results], gradients)
    return {
        "loss": float(max(found)),
        "mean": abs(float(reported[0] / reported[1]) - mean),
        "grad": max(float((full[name] - gradients[name]).abs().max()) for name in full),
    }


def within(found: dict[str, float]) -> bool:
    return found["loss"] <= 1e-5 and found["mean"] <= 1e-5 and found["grad"] <= 2e-6


def leaks() -> None:
    """Attention sees the whole row."""
    from megatron_cod.training.data import batches

    right = batches.packed_batch

    def one_sample(batch):
        positions = torch.arange(batch["position_ids"].numel()).view(1, -1)
        return right({**batch, "position_ids": positions, batches.ON_HOST: positions})

    batches.packed_batch = one_sample
