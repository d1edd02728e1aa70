"""Loss spikes are told once each, and noise and progress are not treated as them."""

import math
import random

import pytest

from megatron_cod.checkpoint.events import read_events
from megatron_cod.training.faults.spikes import LossSpikes
from tests.distributed.launch import run_training_ranks
from tests.training.faults.mutants import current_step


def falling(steps: int, noise: float, seed: int = 1) -> list[float]:
    """A training's losses: a fast fall, then a slow one, with normal noise."""
    draw = random.Random(seed)
    return [
        2.0 + 6.0 * math.exp(-step / 30) + 1.0 * math.exp(-step / 400) + draw.gauss(0, noise) for step in range(steps)
    ]


def told(losses: list[float], factor: float = 10.0) -> list[int]:
    spikes = LossSpikes(factor)
    return [step for step, loss in enumerate(losses) if spikes.see(loss)]


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_no_spike_in_an_ordinary_training(noise, seed):
    assert told(falling(2000, noise, seed)) == []


@pytest.mark.parametrize(("at", "length"), [(60, 1), (100, 1), (500, 20), (1500, 300)])
def test_spike_is_logged_once_at_its_first_step(at, length):
    losses = falling(2000, 0.05)
    for step in range(at, at + length):
        losses[step] += 3.0
    assert told(losses) == [at]


def test_two_spikes_are_two():
    losses = falling(1000, 0.05)
    for step in (600, 601, 640):
        losses[step] += 3.0
    assert told(losses) == [600, 640]


def test_ignores_nonfinite_losses():
    losses = falling(300, 0.05)
    losses[200] = float("nan")
    losses[210] += 3.0
    assert told(losses) == [210]


def test_a_mean_instead_of_a_median_would_miss_the_second(monkeypatch):
    """The mutant: a band of mean and standard deviation, which the first spike widens."""
    from megatron_cod.training.faults import spikes

    losses = falling(1000, 0.05)
    losses[600] += 30.0
    losses[620] += 3.0
    assert told(losses) == [600, 620]
    monkeypatch.setattr(spikes.statistics, "median", lambda values: (lambda v: sum(v) / len(v))(list(values)))
    assert told(losses) == [600]


class Spike:
    """The loss is five times as high at one step, on all ranks."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self) -> None:
        from megatron.core.models.gpt import GPTModel

        forward = GPTModel.forward

        def higher(model, *args, **kwargs):
            output = forward(model, *args, **kwargs)
            return output * 5.0 if model.training and current_step() == self.step else output

        GPTModel.forward = higher


@pytest.mark.slow
def test_run_logs_a_spike(tiny, tmp_path):
    flags = [*tiny, "--train-iters", "44", "--lr-decay-iters", "44", "--eval-iters", "0", "--save-interval", "100"]
    ended = run_training_ranks(1, [*flags, "--save", str(tmp_path)], before=Spike(40))
    assert ended[0].code == 0
    assert [one["step"] for one in read_events(tmp_path) if one["event"] == "loss spike"] == [40]
    assert ended[0].output.count("WARNING: loss spike at step 40: ") == 1
