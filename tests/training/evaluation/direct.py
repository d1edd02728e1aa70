"""The same measures by a plain loop over plain PyTorch, in float64: one window after another, one row at a time."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tests import oracle

SHAPE = oracle.Shape(layers=4, hidden=32, ffn=64, heads=4, groups=4, vocab=264)
EOD = 256


def exported_weights(folder: Path) -> oracle.Weights:
    """Of a checkpoint, factors folded in, in float64; with the padding rows of the vocabulary, as it was trained."""
    from megatron_cod.huggingface.checkpoint import find_checkpoint
    from megatron_cod.huggingface.export import exported

    return {name: value.double() for name, value in exported(find_checkpoint(folder), vocab=SHAPE.vocab).tensors()}


def token_losses(weights: oracle.Weights, tokens: list[int], size: int, stride: int) -> list[float]:
    """The loss of every token but the first, each from the first window that holds it."""
    losses: list[float] = []
    begin = 0
    while len(losses) < len(tokens) - 1:
        part = torch.tensor([tokens[begin : begin + size + 1]])
        logits, _ = oracle.forward(weights, part[:, :-1], "pre_ln", SHAPE)
        row: Tensor = F.cross_entropy(logits[0], part[0, 1:], reduction="none")
        losses += row[len(losses) - begin :].tolist()
        begin += stride
    return losses


def documents(eval_data: Path) -> dict[str, list[list[int]]]:
    """The ids of each set's documents, read without any code of ours."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    web = IndexedDataset(str(eval_data / "web"))
    found = {"web": [web[n].tolist() for n in range(len(web))]}
    for line in (eval_data / "mix.jsonl").read_text().splitlines():
        record = json.loads(line)
        found.setdefault(f"mix/{record['source']}", []).append([*record["text"].encode(), EOD])
    return found


def measured(
    weights: oracle.Weights,
    sets: dict[str, list[list[int]]],
    size: int,
    stride: int,
    by_document: bool,
    prefix: int | None,
) -> dict[str, list[float]]:
    """Every token's loss, a list a set."""
    found = {}
    for name, texts in sets.items():
        streams = texts if by_document else [[token for ids in texts for token in ids]]
        lead = [] if prefix is None else [prefix]
        found[name] = [loss for ids in streams for loss in token_losses(weights, [*lead, *ids], size, stride)]
    return found
