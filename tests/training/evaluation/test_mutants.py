"""Wrong ways to average and to cut are caught: by another value than the direct one, or by the sums themselves."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.distributed.launch import run_ranks
from tests.training.evaluation import direct
from tests.training.evaluation.datasets import EOD
from tests.training.evaluation.runs import DOCUMENTS

Outcome = dict[str, tuple[float, int]] | str
"""Each set's loss and tokens, or what the run said instead."""


def mean_of_a_batch(patch: pytest.MonkeyPatch) -> None:
    """Every row counts as much as any other."""
    from megatron_cod.training.evaluation import scoring

    right = scoring.row_sums

    def wrong(mask, losses):
        nothing, sums = right(mask, losses)
        share = sums[:, 1].sum() / (sums[:, 1] > 0).sum()
        sums[:, 0] *= share / sums[:, 1].clamp(min=1)
        return nothing, sums

    patch.setattr(scoring, "row_sums", wrong)


def last_batch_dropped(patch: pytest.MonkeyPatch) -> None:
    from megatron_cod.training.evaluation import scoring

    right = scoring.plan_calls
    patch.setattr(scoring, "plan_calls", lambda job, replicas: right(job, replicas)[:-1])


def padding_counted(patch: pytest.MonkeyPatch) -> None:
    from megatron_cod.training.evaluation import scoring

    right = scoring.row_sums
    patch.setattr(scoring, "row_sums", lambda mask, losses: right(mask * 0 + 1, losses))


def padding_in_the_sum_alone(patch: pytest.MonkeyPatch) -> None:
    """Divided by the right number of tokens."""
    from megatron_cod.training.evaluation import scoring

    right = scoring.row_sums

    def wrong(mask, losses):
        nothing, sums = right(mask, losses)
        sums[:, 0] = losses.double().sum(1)
        return nothing, sums

    patch.setattr(scoring, "row_sums", wrong)


def _other_plan(patch: pytest.MonkeyPatch, change: Callable[[Any], dict[str, np.ndarray]]) -> None:
    from dataclasses import replace

    from megatron_cod.training.evaluation import run

    right = run.plan_windows

    def wrong(*case, **named):
        plan = right(*case, **named)
        return replace(plan, **change(plan))

    patch.setattr(run, "plan_windows", wrong)


def context_counted_twice(patch: pytest.MonkeyPatch) -> None:
    _other_plan(patch, lambda plan: {"counted": plan.counted * 0})


def first_token_of_a_window_missing(patch: pytest.MonkeyPatch) -> None:
    _other_plan(patch, lambda plan: {"counted": np.minimum(plan.counted + 1, plan.length)})


def labels_one_too_late(patch: pytest.MonkeyPatch) -> None:
    """A token is predicted from itself and what is before it."""
    from megatron_cod.training.evaluation import scoring

    right = scoring.cut_row

    def wrong(ids, plan, row, prefix):
        _, labels, counts = right(ids, plan, row, prefix)
        return labels, labels, counts

    patch.setattr(scoring, "cut_row", wrong)


def a_row_on_two_replicas(patch: pytest.MonkeyPatch) -> None:
    """The last batch is filled up with rows from its beginning, as samplers do that need even batches."""
    from megatron_cod.training.evaluation import scoring

    right = scoring.plan_calls

    def wrong(job, replicas):
        calls = right(job, replicas)
        last = calls[-1]
        size = last.rows_a_micro_batch * last.micro_batches * replicas
        assert len(last.rows) < size, "the data fills the last batch: there is nothing to fill up"
        return [
            *calls[:-1],
            scoring.Call(np.resize(last.rows, (size, 2)), *(vars(last)[n] for n in list(vars(last))[1:])),
        ]

    patch.setattr(scoring, "plan_calls", wrong)


def only_this_replica(patch: pytest.MonkeyPatch) -> None:
    """Sums are not brought together."""
    import torch

    patch.setattr(torch.distributed, "all_reduce", lambda *_, **__: None)


def right(_: pytest.MonkeyPatch) -> None: ...


MUTANTS = [
    right,
    mean_of_a_batch,
    last_batch_dropped,
    padding_counted,
    padding_in_the_sum_alone,
    context_counted_twice,
    first_token_of_a_window_missing,
    labels_one_too_late,
    a_row_on_two_replicas,
]
ACROSS = [right, last_batch_dropped, a_row_on_two_replicas, only_this_replica]


def worker(_rank: int, flags: list[str], mutants: list[Callable[[pytest.MonkeyPatch], None]]) -> list[Outcome]:
    """What each mutant finds with one and the same model."""
    from megatron_cod.training.evaluation import run, scoring
    from megatron_cod.training.start import loading

    start, _ = run.start_of(flags)
    args = start.args
    sets = run.read_sets(args)
    model = loading.build(args, start.model_config)
    outcomes: list[Outcome] = []
    for mutant in mutants:
        with pytest.MonkeyPatch.context() as patch:
            mutant(patch)
            job = run.plan(args, sets)
            try:
                totals = scoring.measure(job, model)
            except AssertionError as error:
                outcomes.append(f"AssertionError: {error}")
                continue
        assert totals is not None
        means = totals.losses / totals.tokens
        outcomes.append({one.name: (float(means[n]), int(totals.tokens[n])) for n, one in enumerate(sets)})
    sys.stdout.flush()
    return outcomes


def off(outcome: Outcome, expected: dict[str, list[float]]) -> float:
    """The largest relative difference; infinity where other tokens were counted or the run saw it itself."""
    if isinstance(outcome, str):
        return float("inf")
    counts = {name: tokens for name, (_, tokens) in outcome.items()}
    if counts != {name: len(losses) for name, losses in expected.items()}:
        return float("inf")
    return max(abs(outcome[name][0] / np.mean(losses) - 1) for name, losses in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize(("world", "mutants"), [(1, MUTANTS), (2, ACROSS)], ids=["one process", "two replicas"])
def test_detects_mutant(checkpoints, eval_data, asked, world, mutants):
    weights = direct.exported_weights(checkpoints / "lns")
    expected = direct.measured(weights, direct.documents(eval_data), 32, 20, True, EOD)
    flags = ["--load", str(checkpoints / "lns"), *asked, *DOCUMENTS]
    outcomes = run_ranks(world, partial(worker, flags=flags, mutants=mutants))[world - 1]
    found = {mutant.__name__: off(outcome, expected) for mutant, outcome in zip(mutants, outcomes, strict=True)}
    print(found)
    assert found.pop("right") <= 1e-6
    assert min(found.values()) > 1e-4, found
