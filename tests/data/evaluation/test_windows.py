"""Every token is predicted once, with the right context; wrong plans are seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cod.data.evaluation.windows import Windows, cut_row, plan_windows

PREFIX = -1


def by_hand(lengths: list[int], size: int, stride: int, prefixed: bool) -> list[tuple[list[int], list[int]]]:
    """(inputs, labels that count) of each window, written token by token; ids are 0, 1, 2 ... over all streams."""
    found, first = [], 0
    for length in lengths:
        tokens = ([PREFIX] if prefixed else []) + list(range(first, first + length))
        first += length
        inputs, labels, done, begin = tokens[:-1], tokens[1:], 0, 0
        while done < len(labels):
            end = min(begin + size, len(labels))
            found.append((inputs[begin:end], labels[done:end]))
            done, begin = end, begin + stride
    return found


def cut(plan: Windows, ids: np.ndarray) -> list[tuple[list[int], list[int]]]:
    rows = [cut_row(ids, plan, row, PREFIX) for row in range(len(plan))]
    return [(inputs.tolist(), labels[counts].tolist()) for inputs, labels, counts in rows]


CASES = st.tuples(
    st.lists(st.integers(0, 23), min_size=1, max_size=5),
    st.integers(1, 9).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size))),
    st.booleans(),
)


def check(lengths: list[int], size: int, stride: int, prefixed: bool, plan_of=plan_windows) -> None:
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.arange(sum(lengths))
    plan = plan_of(starts, size, stride, prefixed)
    rows = cut(plan, ids)
    assert rows == by_hand(lengths, size, stride, prefixed)
    seen = sorted(label for _, labels in rows for label in labels)
    assert seen == sorted(set(ids) - (set() if prefixed else set(starts[:-1].tolist())))
    assert plan.predicted() == len(seen)
    for (inputs, labels), length in zip(rows, plan.length, strict=True):
        assert len(inputs) == length <= size
        if labels[0] - (0 if prefixed else 1) not in starts[:-1] and len(labels) <= stride:
            assert len(inputs) - len(labels) == size - stride  # the context of the first token that counts


@given(CASES)
@settings(max_examples=300, deadline=None)
def test_every_token_is_predicted_once(case):
    lengths, (size, stride), prefixed = case
    check(lengths, size, stride, prefixed)


def counts_context_twice(starts, size, stride, prefixed):
    plan = plan_windows(starts, size, stride, prefixed)
    return Windows(plan.label, plan.length, plan.counted * 0, plan.prefixed)


def first_token_of_a_window_missing(starts, size, stride, prefixed):
    """As where a window's first token is treated as one without context."""
    plan = plan_windows(starts, size, stride, prefixed)
    return Windows(plan.label, plan.length, np.minimum(plan.counted + 1, plan.length), plan.prefixed)


def last_window_dropped(starts, size, stride, prefixed):
    plan = plan_windows(starts, size, stride, prefixed)
    keep = plan.length == size
    return Windows(*(part[keep] for part in (plan.label, plan.length, plan.counted, plan.prefixed)))


def over_the_border(starts, size, stride, prefixed):
    """Streams run into each other."""
    return plan_windows(starts[[0, -1]], size, stride, prefixed)


@pytest.mark.parametrize(
    "mutant", [counts_context_twice, first_token_of_a_window_missing, last_window_dropped, over_the_border]
)
@pytest.mark.parametrize("prefixed", [False, True])
def test_detects_wrong_plan(mutant, prefixed):
    case = ([10, 3, 17], 8, 5, prefixed)
    check(*case)
    with pytest.raises(AssertionError):
        check(*case, plan_of=mutant)


def test_without_overlap_the_rows_are_those_of_training():
    """Row i of training: inputs ids[i*s : i*s+s], labels one further."""
    plan = plan_windows(np.array([0, 33]), 8, 8, False)
    ids = np.arange(33)
    assert cut(plan, ids) == [(list(range(i * 8, i * 8 + 8)), list(range(i * 8 + 1, i * 8 + 9))) for i in range(4)]
