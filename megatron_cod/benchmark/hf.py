"""Step times of Megatron on one process against transformers: same weights, same batches, same AdamW."""

from collections.abc import Sequence
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from megatron_cod.adaptations import cpu
from megatron_cod.benchmark.engine import Engine, Microbatch, random_batches, start_megatron
from megatron_cod.benchmark.llama import LlamaShape, TransformersLlama, from_megatron
from megatron_cod.benchmark.profiling import operator_table
from megatron_cod.benchmark.report import PARTS, Report, rows_of
from megatron_cod.benchmark.timing import CLOCKS, Lap, Laps, interleave
from megatron_cod.errors import UserError
from megatron_cod.schemes.depth import depth_factor

REFERENCE = "transformers"
TOLERANCE = 1e-4
_FLAGS = ("--mock-data", "--eval-iters", "0", "--logging-level", "40")


def fold_depth(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The weights of a stock Llama that computes what ``lns`` does: gammas times the depth factor."""
    folded = dict(state)
    for layer in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            name = f"model.layers.{layer}.{norm}.weight"
            folded[name] = state[name] * depth_factor(layer + 1)
    return folded


def check_logits(name: str, ours: Tensor, theirs: Tensor) -> str:
    """One line on how far the logits are apart; UserError beyond the tolerance: the timing would mean nothing."""
    difference = (ours - theirs).abs().max().item()
    if not difference <= TOLERANCE:  # also when it is nan
        raise UserError(
            f"{name} does not compute what transformers does: logits differ by {difference:.2e}, allowed {TOLERANCE}"
        )
    return f"logits of {name} and transformers agree within {difference:.1e}"


def check_losses(name: str, ours: Sequence[Lap], theirs: Sequence[Lap]) -> str:
    """The same for the losses of training steps: they agree only if gradients and optimizers do."""
    difference = max(abs(mine.loss - other.loss) for mine, other in zip(ours, theirs, strict=True))
    if not difference <= TOLERANCE:
        raise UserError(
            f"{name} does not train as transformers does: losses differ by {difference:.2e} after {len(ours)} steps, "
            f"allowed {TOLERANCE}"
        )
    return f"losses of {name} and transformers agree within {difference:.1e} over {len(ours)} training steps"


def compare(
    engines: dict[str, Engine],
    reference: TransformersLlama,
    batches: Sequence[Sequence[Microbatch]],
    *,
    rounds: int,
    warmup: int,
    clock: str,
) -> tuple[Laps, list[str]]:
    """Check that all compute the same, then time them; returns the laps and what was checked.

    ``lns`` is checked against the reference with the factor folded into its gammas. Raises UserError when logits, or
    the losses of the first training steps of pre_ln, disagree.
    """
    notes = []
    layers = reference.model.config.num_hidden_layers
    state = {name: tensor.clone() for name, tensor in reference.model.state_dict().items()}
    same_function = {"pre_ln": state, "lns": fold_depth(state, layers)}
    for name, engine in engines.items():
        reference.model.load_state_dict(same_function[name])
        batch = batches[0][0]
        notes.append(check_logits(name, engine.logits(batch), reference.logits(batch)))
    reference.model.load_state_dict(state)
    del state, same_function

    contestants: dict[str, Any] = {REFERENCE: reference, **engines}

    def steppers() -> dict[str, partial[Lap]]:
        turns = {name: cycle(batches) for name in contestants}
        return {name: partial(lambda n: contestants[n].step(next(turns[n]), CLOCKS[clock]), name) for name in turns}

    first = interleave(steppers(), rounds=max(warmup, 2), warmup=0)  # timed too, and thrown away: this is the warm-up
    notes.append(check_losses("pre_ln", first["pre_ln"], first[REFERENCE]))
    return interleave(steppers(), rounds=rounds, warmup=0), notes


def compare_with_transformers(
    shape: LlamaShape,
    megatron_flags: Sequence[str],
    *,
    rounds: int,
    warmup: int,
    threads: int,
    clock: str,
    fused_adam: bool = False,
    profile: bool = False,
) -> Report:
    """Time transformers, pre_ln and lns on one shape. megatron_flags override the benchmark's own.

    fused_adam: torch's fused AdamW kernel on both sides; by default both get what torch chooses on this device.
    profile: add a table of operators to the report.
    """
    args = start_megatron([*_FLAGS, *shape.megatron_flags(), *megatron_flags], threads)
    # Plain initialisation on both, so that the one set of weights is a normal start for both.
    args.init_policy = "normal"
    engines = {name: Engine(args, name) for name in ("pre_ln", "lns")}
    weights = dict(engines["pre_ln"].parameters())
    with torch.no_grad():
        for parameter in weights.values():
            if parameter.dim() == 1:  # gammas start at 1, and all ones would hide a mistaken one
                parameter.uniform_(0.5, 1.5)
        for name, parameter in engines["lns"].parameters():
            parameter.copy_(weights[name])
    reference = TransformersLlama(shape, from_megatron(weights.items(), shape.heads))
    reference.model.to(torch.cuda.current_device())
    if fused_adam:
        for optimizer in (reference.optimizer, *(engine.optimizer.optimizer for engine in engines.values())):
            for group in optimizer.param_groups:
                group["fused"] = True
    batches = random_batches(args, 4)
    laps, notes = compare(engines, reference, batches, rounds=rounds, warmup=warmup, clock=clock)
    appendix = ""
    if profile:
        contestants: dict[str, Any] = {REFERENCE: reference, **engines}
        appendix = operator_table(
            {name: partial(found.step, batches[0], CLOCKS[clock]) for name, found in contestants.items()}
        )
    parameters = sum(parameter.numel() for parameter in weights.values())
    facts = {
        "parameters": f"{parameters / 1e6:.1f}M",
        "layers": shape.layers,
        "hidden": shape.hidden,
        "ffn": shape.ffn,
        "vocabulary": shape.vocab,
        "batch": f"{shape.batch} x {shape.seq}",
        "dtype": str(args.params_dtype).removeprefix("torch."),
        "threads": threads,
        "rounds": rounds,
        "clock": clock,
        "AdamW": "fused" if fused_adam else "torch's default",
        "device": "GPU" if cpu.has_cuda() else "CPU",
    }
    rows = rows_of(laps, REFERENCE, shape.batch * shape.seq, tuple(PARTS))
    return Report("Step time against transformers", REFERENCE, facts, rows, laps, notes, appendix)
