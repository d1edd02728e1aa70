from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cod.data.preprocessing.encode import digest_of
from megatron_cod.data.preprocessing.splits import make_splitter


def hashes_of(texts: list[str]) -> np.ndarray:
    return np.array([int.from_bytes(digest_of([text])[0][:8], "big") for text in texts], np.uint64)


def deal(texts: list[str], split: str | None = None, holdout_every: int | None = None) -> list[str]:
    splitter = make_splitter(split, holdout_every)
    assert splitter is not None
    codes = splitter.codes(hashes_of(texts), np.arange(len(texts)))
    return [splitter.names[code] for code in codes]


TEXTS = [f"text {number}" for number in range(20_000)]


@pytest.mark.parametrize("weights", [(90, 5, 5), (98, 1, 1), (1, 1, 0), (1, 0, 1), (7, 0, 0)])
def test_shares_are_met_on_average(weights: tuple[int, ...]) -> None:
    counts = Counter(deal(TEXTS, ",".join(map(str, weights))))
    for name, weight in zip(("train", "valid", "test"), weights, strict=True):
        share = weight / sum(weights)
        spread = (len(TEXTS) * share * (1 - share)) ** 0.5
        assert abs(counts[name] - len(TEXTS) * share) <= 4 * spread
        assert weight or name not in counts


@given(st.permutations(TEXTS[:60]), st.integers(0, 60))
def test_a_document_stays_in_its_split(texts: list[str], count: int) -> None:
    """Whatever is added, omitted, or read in another order."""
    before = dict(zip(TEXTS[:60], deal(TEXTS[:60], "5,3,2"), strict=True))
    for text, name in zip(texts[:count], deal(texts[:count], "5,3,2"), strict=True):
        assert name == before[text]


def test_a_larger_share_only_takes_documents_from_the_next_split() -> None:
    small, large = deal(TEXTS, "90,10"), deal(TEXTS, "95,5")
    assert all(
        before == after or (before, after) == ("valid", "train") for before, after in zip(small, large, strict=True)
    )


def test_weights_need_not_add_up_to_a_hundred() -> None:
    assert deal(TEXTS, "90,5,5") == deal(TEXTS, "0.9,0.05,0.05")


def test_holdout_is_every_nth_document() -> None:
    assert deal(TEXTS[:6], holdout_every=3) == ["train", "train", "valid"] * 2


@pytest.mark.parametrize("split", ["90", "", "a,b", "1,1,1,1", "-1,2", "0,1", "1/0,1", "nan,1"])
def test_rejects_bad_split(split: str) -> None:
    with pytest.raises(ValueError, match="is not TRAIN,VALID or TRAIN,VALID,TEST"):
        make_splitter(split, None)


def test_rejects_bad_holdout() -> None:
    with pytest.raises(ValueError, match="leaves nothing to train on"):
        make_splitter(None, 1)
    with pytest.raises(ValueError, match="not both"):
        make_splitter("9,1", 5)


def test_one_dataset_without_split_flag() -> None:
    assert make_splitter(None, None) is None
