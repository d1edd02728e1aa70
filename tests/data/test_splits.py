from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cod.data.splits import make_splitter


def deal(count: int, split: str | None = None, holdout_every: int | None = None) -> list[str]:
    splitter = make_splitter(split, holdout_every)
    assert splitter is not None
    return [splitter.next() for _ in range(count)]


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20), st.integers(1, 400))
def test_shares_are_met_within_two_documents(train: int, valid: int, test: int, count: int) -> None:
    counts = Counter(deal(count, f"{train},{valid},{test}"))
    total = train + valid + test
    for name, weight in (("train", train), ("valid", valid), ("test", test)):
        assert abs(counts[name] - count * weight / total) < 2
        assert weight or name not in counts


def test_weights_need_not_add_up_to_a_hundred() -> None:
    assert deal(50, "90,5,5") == deal(50, "0.9,0.05,0.05")
    assert Counter(deal(24, "90,5,5")) == {"train": 22, "valid": 1, "test": 1}


def test_holdout_takes_every_nth() -> None:
    assert deal(6, holdout_every=3) == ["train", "train", "valid"] * 2


@pytest.mark.parametrize("split", ["90", "", "a,b", "1,1,1,1", "-1,2", "0,1", "1/0,1", "nan,1"])
def test_bad_split(split: str) -> None:
    with pytest.raises(ValueError, match="is not TRAIN,VALID or TRAIN,VALID,TEST"):
        make_splitter(split, None)


def test_bad_holdout() -> None:
    with pytest.raises(ValueError, match="leaves nothing to train on"):
        make_splitter(None, 1)
    with pytest.raises(ValueError, match="not both"):
        make_splitter("9,1", 5)


def test_no_split_asked() -> None:
    assert make_splitter(None, None) is None
