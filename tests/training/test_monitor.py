import json
import math

import pytest

from megatron_cod.analysis.metrics import perplexity, read_metrics, variance_tag
from megatron_cod.training import monitor
from megatron_cod.training.monitor import MetricsWriter, format_duration


class Clock:
    now = 0.0


@pytest.fixture()
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(monitor.time, "monotonic", lambda: clock.now)
    return clock


class Inner:
    def __init__(self):
        self.calls = []

    def add_scalar(self, *call):
        self.calls.append(call)

    def add_text(self, *call):
        return call


def writer(path=None, inner=None, interval=2):
    lines = []
    made = MetricsWriter(inner, path, train_iters=10, tokens_per_step=100, log_interval=interval, emit=lines.append)
    return made, lines


def test_progress_counts_training_time_and_eta_counts_everything(clock):
    made, lines = writer()
    for step in range(1, 11):
        made.add_scalar("learning-rate", 1e-3, step)
        made.add_scalar("lm loss", 2.0, step)
        if step == 4:
            clock.now += 50  # a validation
            made.add_scalar("lm loss validation", 3.0, step)
        clock.now += 0.5
    assert lines[0] == "step  1/10 | loss 2.0000 | ppl 7.39 | lr 1.00e-03"
    assert lines[1].endswith("200 tokens/s | ETA 0:04")
    assert "validation at step 4: loss 3.0000 | perplexity 20.09" in lines
    after = next(line for line in lines if line.startswith("step  6"))
    assert "200 tokens/s" in after  # the validation is not in the rate
    assert after.endswith("ETA 0:42")  # but it is in what is left: 52.5 s for 5 steps, 4 to go
    assert lines[-1].endswith("ETA 0:00")


def test_everything_reaches_tensorboard_and_the_file(tmp_path):
    inner = Inner()
    made, _ = writer(tmp_path / "m.jsonl", inner)
    made.add_scalar("lm loss", 2.0, 1)
    made.add_scalar("lm loss vs samples", 2.0, 8)
    assert inner.calls == [("lm loss", 2.0, 1), ("lm loss vs samples", 2.0, 8)]
    assert made.add_text("a", "b") == ("a", "b")
    records = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [(r["name"], r["step"], r["value"]) for r in records] == [("lm loss", 1, 2.0)]


def test_a_writer_without_tensorboard_is_still_a_writer():
    made, _ = writer()
    assert made
    made.add_text("a", "b")


def test_metrics_of_a_resumed_run_and_a_torn_line(tmp_path):
    path = tmp_path / "m.jsonl"
    rows = [(1, "lm loss", 5.0), (2, "lm loss", 4.0), (2, "lm loss", 4.5), (3, "lm loss", 3.0)]
    rows += [(3, variance_tag(12), 2.0), (3, variance_tag(2), 1.0)]
    lines = [json.dumps({"step": s, "name": n, "value": v}) for s, n, v in rows]
    path.write_text("\n".join([*lines, '{"step": 4, "na']))
    metrics = read_metrics(path)
    assert metrics.series("lm loss") == ([1, 2, 3], [5.0, 4.5, 3.0])
    assert (metrics.last("lm loss"), metrics.last_step()) == (3.0, 3)
    assert list(metrics.stream_variance().items()) == [(2, 1.0), (12, 2.0)]
    path.write_text("\n".join(["not json", *lines]))
    with pytest.raises(ValueError, match=r"m\.jsonl:1 is not a metrics record"):
        read_metrics(path)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3600, "1:00:00"), (3725, "1:02:05")])
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_perplexity_of_a_diverged_loss():
    assert perplexity(2.0) == math.exp(2.0)
    assert perplexity(1e4) == math.inf
