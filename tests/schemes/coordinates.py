"""Small models of any width and depth, trained for some steps: how large their activations are, and their loss."""

import torch

from tests.distributed.engine import MODEL_FLAGS, Engine, shape_flags, start_megatron
from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.oracle import Shape

BASE = ["--complete-p-base-layers", "2", "--complete-p-base-hidden-size", "64"]
HEAD = 16
LENGTH = 32


def shape_of(width: int, depth: int) -> Shape:
    """Heads of one size: with others the attention's scale would have to follow."""
    heads = width // HEAD
    return Shape(layers=depth, hidden=width, ffn=2 * width, heads=heads, groups=heads, vocab=64)


def batches(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels [steps, 4, s]: a fixed permutation gives the next token, a fifth of the time."""
    generator = torch.Generator().manual_seed(3)
    follows = torch.randperm(64, generator=generator)
    drawn = torch.randint(0, 64, (steps, 4, LENGTH + 1), generator=generator)
    chance = torch.rand(steps, 4, LENGTH + 1, generator=generator)
    for place in range(1, LENGTH + 1):
        fixed = chance[..., place] > 0.2
        drawn[..., place] = torch.where(fixed, follows[drawn[..., place - 1]], drawn[..., place])
    return drawn[..., :-1].contiguous(), drawn[..., 1:].contiguous()


def _worker(_rank: int, scheme: list[str], width: int, depth: int, lr: float, steps: int) -> dict[str, float]:
    shape = shape_of(width, depth)
    sizes = ["--micro-batch-size", "1", "--global-batch-size", "4", "--lr", str(lr), "--init-method-std", "0.1"]
    args = start_megatron([*MODEL_FLAGS, *shape_flags(shape, LENGTH), *Layout().all_flags(), *sizes, *scheme[1:]])
    engine = Engine(args, Layout(), shape, scheme[0])
    tokens, labels = batches(steps)
    losses = engine.train(tokens, labels)
    sizes_seen: list[float] = []
    last = next(module for name, module in engine.model[0].named_modules() if name.endswith(f"layers.{depth - 1}"))
    last.register_forward_hook(lambda _m, _i, out: sizes_seen.append(float(out[0].square().mean().sqrt())))
    result = engine.forward_backward(tokens[0], labels[0], forward_only=True)
    return {
        "stream": sum(sizes_seen) / len(sizes_seen),
        "logits": float(result["logits"].std()),
        "loss": sum(losses[-8:]) / len(losses[-8:]),
    }


def trained(scheme: list[str], width: int, depth: int, lr: float = 2.0**-7, steps: int = 10) -> dict[str, float]:
    """Root mean square of the last block's stream, standard deviation of the logits, mean loss of the last 8 steps.

    scheme: name and flags.
    """
    [found] = run_ranks(1, _worker, scheme, width, depth, lr, steps)
    return found
