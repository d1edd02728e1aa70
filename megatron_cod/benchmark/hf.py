"""Megatron on one process against transformers, the same weights and tokens: training steps with AdamW, and evaluation.

transformers takes part twice: the ratio of the two is what the measurement itself gives for equals (the A/A control).
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_cod.adaptations import cpu
from megatron_cod.args import MegatronArgs
from megatron_cod.benchmark.agreement import check_evaluation, check_logits, check_losses, fold_depth
from megatron_cod.benchmark.engine import Engine, Microbatch, random_batches, start_megatron
from megatron_cod.benchmark.llama import LlamaShape, TransformersLlama, from_megatron
from megatron_cod.benchmark.profiling import operator_table
from megatron_cod.benchmark.report import PARTS, Report, rows_of
from megatron_cod.benchmark.timing import CLOCKS, Lap, Laps, Step, interleave
from megatron_cod.data.evaluation.token_sets import TokenSet
from megatron_cod.data.evaluation.windows import plan_windows
from megatron_cod.schemes.table import SCHEMES
from megatron_cod.training.evaluation.batch_size import micro_batch_size
from megatron_cod.training.evaluation.scoring import Job, measure

REFERENCE, CONTROL = "transformers", "transformers again"
_FLAGS = ("--mock-data", "--eval-iters", "0", "--logging-level", "40")
_EVALUATED = 16
"""Windows of an evaluation, in micro-batches."""

Engines = dict[str, Engine]


def same_function(engines: Iterable[str], state: dict[str, Tensor], layers: int) -> dict[str, dict[str, Tensor]]:
    """Of each scheme, the weights with which a stock Llama computes it. state: the weights that all engines have."""
    return {name: fold_depth(SCHEMES[name], state, layers) for name in engines}


def compare(
    engines: Engines,
    references: dict[str, TransformersLlama],
    batches: Sequence[Sequence[Microbatch]],
    *,
    rounds: int,
    warmup: int,
    clock: str,
) -> tuple[Laps, list[str]]:
    """Check that all compute the same, then time training steps; returns the laps and what was checked.

    ``lns`` is checked against the reference with the factor folded into its gammas. Raises UserError when logits, or
    the losses of the first training steps of pre_ln, disagree.
    """
    reference = references[REFERENCE]
    state = {name: tensor.clone() for name, tensor in reference.model.state_dict().items()}
    notes = []
    for name, weights in same_function(engines, state, reference.model.config.num_hidden_layers).items():
        reference.model.load_state_dict(weights)
        batch = batches[0][0]
        notes.append(check_logits(name, engines[name].logits(batch), reference.logits(batch)))
    reference.model.load_state_dict(state)
    contestants: dict[str, Any] = {**references, **engines}

    def steppers() -> dict[str, Step]:
        turns = {name: cycle(batches) for name in contestants}
        return {name: partial(lambda n: contestants[n].step(next(turns[n]), CLOCKS[clock]), name) for name in turns}

    first = interleave(steppers(), rounds=max(warmup, 2), warmup=0)  # timed too, and thrown away: this is the warm-up
    notes.append(check_losses("pre_ln", first["pre_ln"], first[REFERENCE]))
    return interleave(steppers(), rounds=rounds, warmup=0), notes


def _job(rows: Tensor, micro_batch: int) -> Job:
    """Rows [n, s + 1], each the last token of the one before and s new ones, as an evaluation reads them."""
    ids = torch.cat([rows[:1, :1].flatten(), rows[:, 1:].flatten()]).cpu().numpy()
    starts = np.array([0, len(ids)])
    windows = plan_windows(starts, rows.shape[1] - 1, rows.shape[1] - 1, prefixed=False)
    return Job([TokenSet("tokens", "tokens", ids, starts, None)], [windows], None, rows.shape[1] - 1, micro_batch, 4)


def _ours(engine: Engine, job: Job) -> float:
    """The summed loss of a job, by the code of ``megatron-cod evaluate``."""
    for chunk in engine.model:
        chunk.eval()
    totals = measure(job, engine.model)
    for chunk in engine.model:
        chunk.train()
    assert totals is not None
    return float(totals.losses[0])


def compare_evaluation(
    engines: Engines,
    references: dict[str, TransformersLlama],
    rows: Tensor,
    micro_batch: int,
    *,
    rounds: int,
    warmup: int,
    clock: str,
) -> tuple[Laps, list[str]]:
    """The same for the loss of rows [n, s + 1] of tokens, so many at once on all sides; transformers in inference mode."""
    job, tokens, notes = _job(rows, micro_batch), rows[:, 1:].numel(), []
    reference = references[REFERENCE]
    state = {name: tensor.clone() for name, tensor in reference.model.state_dict().items()}
    for name, weights in same_function(engines, state, reference.model.config.num_hidden_layers).items():
        reference.model.load_state_dict(weights)
        theirs = reference.evaluate(rows, micro_batch) / tokens
        notes.append(check_evaluation(name, _ours(engines[name], job) / tokens, theirs))
    reference.model.load_state_dict(state)

    def timed(work: Callable[[], float]) -> Lap:
        torch.cuda.synchronize()
        start = CLOCKS[clock]()
        loss = work()
        torch.cuda.synchronize()
        return Lap(CLOCKS[clock]() - start, 0.0, loss)

    steps: dict[str, Step] = {
        n: partial(timed, partial(one.evaluate, rows, micro_batch)) for n, one in references.items()
    }
    steps |= {name: partial(timed, partial(_ours, engine, job)) for name, engine in engines.items()}
    return interleave(steps, rounds=rounds, warmup=warmup), notes


def _built(args: MegatronArgs, shape: LlamaShape) -> tuple[Engines, dict[str, TransformersLlama]]:
    """pre_ln and lns of Megatron, and twice transformers' model, all with the same weights."""
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
    references = {}
    for name in (REFERENCE, CONTROL):
        references[name] = TransformersLlama(shape, from_megatron(weights.items(), shape.heads))
        references[name].model.to(torch.cuda.current_device())
    return engines, references


def _facts(shape: LlamaShape, engines: Engines, args: MegatronArgs, at_once: int, tokens: int) -> dict[str, Any]:
    parameters = sum(parameter.numel() for _, parameter in engines["pre_ln"].parameters())
    return {
        "parameters": f"{parameters / 1e6:.1f}M",
        "layers": shape.layers,
        "hidden": shape.hidden,
        "ffn": shape.ffn,
        "vocabulary": shape.vocab,
        "batch": f"{at_once} x {shape.seq}",
        "tokens": tokens,
        "dtype": str(args.params_dtype).removeprefix("torch."),
        "device": "GPU" if cpu.has_cuda() else "CPU",
    }


def compare_with_transformers(
    shape: LlamaShape,
    megatron_flags: Sequence[str],
    *,
    rounds: int,
    warmup: int,
    threads: int,
    clock: str,
    evaluation: bool = False,
    profile: bool = False,
) -> Report:
    """Time transformers, pre_ln and lns on one shape. megatron_flags win over the shape's.

    evaluation: time the loss of tokens in place of training steps. profile: add a table of operators to the report.
    """
    args = start_megatron([*_FLAGS, *shape.megatron_flags(), *megatron_flags], threads)
    shape = LlamaShape.of(args)
    engines, references = _built(args, shape)
    times: dict[str, Any] = {"rounds": rounds, "warmup": warmup, "clock": clock}
    measured = {"threads": threads, "rounds": rounds, "clock": clock}
    if evaluation:
        at_once = micro_batch_size(args, args.micro_batch_size)
        rows = torch.randint(shape.vocab, (_EVALUATED * at_once, shape.seq + 1), device=torch.cuda.current_device())
        rows[1:, 0] = rows[:-1, -1]
        laps, notes = compare_evaluation(engines, references, rows, at_once, **times)
        tokens = rows[:, 1:].numel()
        facts = _facts(shape, engines, args, at_once, tokens) | measured
        return Report(
            "Evaluation against transformers", REFERENCE, facts, rows_of(laps, REFERENCE, tokens), laps, notes
        )
    batches = random_batches(args, 4)
    laps, notes = compare(engines, references, batches, **times)
    appendix = ""
    if profile:
        contestants: dict[str, Any] = {REFERENCE: references[REFERENCE], **engines}
        appendix = operator_table(
            {name: partial(found.step, batches[0], CLOCKS[clock]) for name, found in contestants.items()}
        )
    tokens = shape.batch * shape.seq
    facts = _facts(shape, engines, args, shape.batch, tokens) | measured
    table = rows_of(laps, REFERENCE, tokens, tuple(PARTS))
    return Report("Step time against transformers", REFERENCE, facts, table, laps, notes, appendix)
