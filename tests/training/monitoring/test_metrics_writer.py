import json
import math

import pytest

from megatron_cod.analysis.metrics import perplexity, read_metrics, variance_tag
from megatron_cod.common.amounts import format_duration, tokens_text
from megatron_cod.training.monitoring import metrics_writer
from megatron_cod.training.monitoring.metrics_writer import MetricsWriter
from megatron_cod.training.monitoring.throughput import Job


class Clock:
    now = 0.0


@pytest.fixture()
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(metrics_writer.time, "monotonic", lambda: clock.now)
    return clock


class Inner:
    def __init__(self):
        self.calls = []

    def add_scalar(self, *call):
        self.calls.append(call)

    def add_text(self, *call):
        return call


JOB = Job(processes=1, tokens_per_sample=25, flops_per_sample=0.0, peak_tflops=None)


def writer(path=None, inner=None, interval=2, job=JOB, consumed=lambda: 48, train_samples=80, **more):
    lines = []
    made = MetricsWriter(
        inner, path, train_iters=10, train_samples=train_samples, batch_size=4, consumed=consumed, job=job,
        log_interval=interval, emit=lines.append, **more,
    )  # fmt: skip
    return made, lines


def test_progress_counts_training_time_and_eta_counts_everything(clock):
    consumed = [0]
    made, lines = writer(consumed=lambda: consumed[0], train_samples=40)
    for step in range(1, 11):
        consumed[0] += 4
        made.add_scalar("learning-rate", 1e-3, step)
        made.add_scalar("lm loss", 2.0, step)
        if step == 4:
            clock.now += 50  # a validation
            made.evaluation("validation", step, 3.0)
        clock.now += 0.5
    assert lines[0] == "step  1/10 | loss 2.0000 | ppl 7.39 | lr 1.00e-03"
    assert lines[1].endswith("200 tokens/s | 200 tokens seen | ETA 0:04")
    assert "validation at step 4: loss 3.0000 | perplexity 20.09" in lines
    after = next(line for line in lines if line.startswith("step  6"))
    assert "200 tokens/s" in after  # the validation is not in the rate
    assert after.endswith("ETA 0:42")  # but it is in what is left: 52.5 s for 5 steps, 4 to go
    assert lines[-1].endswith("ETA 0:00")


def test_computes_eta_in_samples(clock):
    """Batches grow from 4 to 8 at step 6, and so do the seconds of a step."""
    consumed = [0]
    made, lines = writer(consumed=lambda: consumed[0], train_samples=60)
    for step in range(1, 11):
        size = 4 if step < 6 else 8
        consumed[0] += size
        clock.now += size / 4
        made.add_scalar("batch-size", size, step)
        made.add_scalar("lm loss", 2.0, step)
    told = {int(line.split()[1].split("/")[0]): line for line in lines if "ETA" in line}
    assert told[4].endswith("100 tokens/s | 400 tokens seen | ETA 0:11")  # of 60 samples 44 are left, 4 a second
    assert told[8].endswith("100 tokens/s | 1.10K tokens seen | ETA 0:04")
    assert "steps 1 to 10, 1.50K tokens" in made.summary.lines(None)[1]


def test_rates_are_total_per_process_and_mfu(clock):
    """4 devices of 1 TFLOP/s, 8 samples of 1e11 in a second: 8e11 of 4e12."""
    told = {}
    made, lines = writer(job=Job(4, 25, 1e11, 1.0), also=lambda values, step: told.update({step: values}))
    for step in (1, 2):
        made.add_scalar("batch-size", 8, step)  # Megatron tells it before the loss
        made.add_scalar("lm loss", 2.0, step)
        clock.now += 1.0
    assert "| 200 tokens/s (50 each, MFU 20.0%) |" in lines[-1]
    assert told[2] == {"tokens per second": 200, "tokens per second and GPU": 50, "MFU": 0.2, "tokens seen": 1200}


@pytest.mark.parametrize(
    ("tokens", "text"),
    [(0, "0"), (820, "820"), (1000, "1.00K"), (52_400, "52.4K"), (1_310_000_000, "1.31B"), (999_900, "1000K")],
)
def test_token_counts_are_short(tokens, text):
    assert tokens_text(tokens) == text


def test_summary_lists_the_steps_of_a_start(clock, tmp_path):
    from megatron_cod.checkpoint.events import Events

    (tmp_path / "iter_0000006").mkdir()
    for name, facts in (("start", {}), ("loss spike", {}), ("start", {}), ("step skipped", {}), ("step skipped", {})):
        Events(str(tmp_path), 0).add(name, **facts)
    made, _ = writer(consumed=lambda: 40)
    assert made.summary.lines(str(tmp_path)) == []
    for step in range(5, 9):
        made.add_scalar("lm loss", float(step), step)
        clock.now += 2.0
    for step, loss in ((6, 3.0), (8, 4.0)):
        made.evaluation("validation", step, loss)
    assert made.summary.lines(str(tmp_path)) == [
        "summary:",
        "  trained        steps 5 to 8, 400 tokens, in 0:08; 1.00K tokens with what came before",
        "  speed          50 tokens/s",
        "  training loss  8.0000",
        "  validation     4.0000 (perplexity 54.60) at step 8, best 3.0000 at step 6",
        f"  checkpoints    1 in {tmp_path}, the newest iter_0000006",
        "  events         2 x step skipped (events.jsonl)",
    ]


def test_everything_reaches_tensorboard_and_the_file(tmp_path):
    inner = Inner()
    made, _ = writer(tmp_path / "m.jsonl", inner)
    made.add_scalar("lm loss", 2.0, 1)
    made.add_scalar("lm loss vs samples", 2.0, 8)
    assert inner.calls == [("lm loss", 2.0, 1), ("lm loss vs samples", 2.0, 8)]
    assert made.add_text("a", "b") == ("a", "b")
    records = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [(r["name"], r["step"], r["value"]) for r in records] == [("lm loss", 1, 2.0)]


@pytest.mark.parametrize("torn", ['{"step": 2, "na', '{"step": 1, "name": "x", "value": 1.0}\n{"st', ""])
def test_line_after_a_torn_line_is_kept(tmp_path, torn):
    path = tmp_path / "m.jsonl"
    path.write_text(torn)
    made, _ = writer(path)
    made.add_scalar("lm loss", 2.0, 1)
    made.add_scalar("lm loss", 1.0, 2)
    assert read_metrics(path).series("lm loss") == ([1, 2], [2.0, 1.0])


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
def test_durations_are_hours_minutes_seconds(seconds, text):
    assert format_duration(seconds) == text


def test_perplexity_of_a_diverged_loss():
    assert perplexity(2.0) == math.exp(2.0)
    assert perplexity(1e4) == math.inf
