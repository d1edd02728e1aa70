"""What the launcher of the tests' ranks promises: the environment of the test, and where a rank is that does not end."""

import os
import time

import pytest

from tests.distributed.launch import WorkerError, run_ranks

NAME = "MEGATRON_COD_OF_A_TEST"


def read(_rank: int) -> str | None:
    return os.environ.get(NAME)


def test_ranks_have_the_environment_of_their_test(monkeypatch):
    """Also where the server that they are forked from was started by a test with another."""
    assert run_ranks(2, read) == [None, None]
    monkeypatch.setenv(NAME, "1")
    assert run_ranks(2, read) == ["1", "1"]
    monkeypatch.setenv(NAME, "2")
    assert run_ranks(1, read) == ["2"]
    monkeypatch.delenv(NAME)
    assert run_ranks(1, read) == [None]


def sleeps_here(_rank: int) -> None:
    time.sleep(60)


@pytest.mark.slow
def test_shows_where_a_rank_is_that_does_not_end():
    with pytest.raises(WorkerError, match=r"(?s)no result after 3 s from ranks \{0\}.*in sleeps_here"):
        run_ranks(1, sleeps_here, timeout=3)
