"""A resumed run is told when its place in the data means something else than it did."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from megatron_cod.checkpoint.place_in_data import data_warnings

HERE = Path("iter_0000010")
DATA = {
    "data_content": {"moved/d": "1", "e": "2"},
    "seed": 1,
    "split": None,
    "dataloader_type": "single",
    "data_path": None,
    "data_args_path": None,
    "per_split_data_args_path": None,
    "train_data_path": ["1", "d", "3", "e"],
    "valid_data_path": None,
    "test_data_path": None,
}


def saved(**changed: object) -> Namespace:
    return Namespace(**{**DATA, "data_content": {"d": "1", "e": "2"}, "consumed_train_samples": 40, **changed})


def run(**changed: object) -> Namespace:
    return Namespace(**{**DATA, "no_load_optim": None, "finetune": False, **changed})


@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        ({}, {"data_content": {"d": "1", "e": "3"}}, "was not trained on what is now in e"),
        ({}, {"seed": 2}, "was trained with --seed 1, and this run with 2"),
        ({"split": "90,10,0"}, {"split": "99,1,0"}, "was trained with --split 90,10,0, and this run with 99,1,0"),
        ({}, {"dataloader_type": "cyclic"}, "was trained with --dataloader-type single, and this run with cyclic"),
        (
            {},
            {"train_data_path": ["1", "d", "1", "e"]},
            "was trained with weights 0.25, 0.75, and this run with 0.5, 0.5",
        ),
    ],
)
def test_warns_of_samples_in_another_order(before: dict, now: dict, says: str) -> None:
    [line] = data_warnings(HERE, saved(**before), run(**now))
    assert says in line and "continues at sample 40 of the new order" in line
    for no_place in ({"finetune": True}, {"no_load_optim": True}):
        assert data_warnings(HERE, saved(**before), run(**now, **no_place)) == []


@pytest.mark.parametrize(
    "now",
    [
        {},
        {"data_content": {"moved/d": "1"}},
        {"train_data_path": ["0.25", "moved/d", "0.75", "e"]},
        {"train_data_path": ["10", "d", "30", "e"]},
    ],
)
def test_the_same_order_is_no_warning(now: dict) -> None:
    assert data_warnings(HERE, saved(), run(**now)) == []


def test_a_checkpoint_that_records_nothing_is_no_warning() -> None:
    assert data_warnings(HERE, Namespace(consumed_train_samples=40), run()) == []
    assert data_warnings(HERE, saved(consumed_train_samples=0), run(seed=2)) == []
