"""Progress: rates and the time left, lines in a log and a bar on a terminal."""

import io

import pytest

from megatron_cod.common.progress import Pace, Progress, progress_of_bytes
from tests.common.streams import Clock, Terminal


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("megatron_cod.common.progress.time.monotonic", found)
    return found


def test_rate_excludes_an_earlier_run(clock: Clock):
    pace = Pace(1000, before=200)
    pace.skip(100)
    clock.now = 10.0
    assert pace.left() is None and pace.share == 0.3
    pace.add(200)
    assert pace.rate() == 20.0 and pace.share == 0.5 and pace.left() == "0:25"


def test_prints_a_line_every_five_seconds(clock: Clock):
    stream = io.StringIO()
    progress = progress_of_bytes(100_000_000, stream)
    for clock.now in (1.0, 4.9, 5.0, 6.0):
        progress.add(10_000_000)
    progress.close()
    assert stream.getvalue() == " 30%  6 MB/s  0:12 left\n"


def test_draws_a_bar_on_a_terminal(clock: Clock):
    stream = Terminal()
    progress = Progress(Pace(10), lambda pace: f"{pace.done} parts", stream)
    progress.add(10)
    assert "10 parts" not in stream.getvalue()
    progress.close()
    assert "10 parts" in stream.getvalue() and "100%" in stream.getvalue()


def test_total_of_nothing_is_no_division_by_zero(clock: Clock):
    assert Pace(0).share == 0.0
