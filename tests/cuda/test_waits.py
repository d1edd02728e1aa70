"""Where the host waits for the device in a training step: ours are few, and everybody else's are known by name."""

from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.cuda.counted import LLAMA_60M, Step, count

OURS_AT_MOST = 4
LOOP = {
    "_reduce_any": "rerun_state_machine.py, twice a step",
    "logical_and_across_model_parallel_group": "whether the optimizer has stepped, of all stages",
    "reduce_max_stat_across_model_parallel_group": "gradient norm of all stages, and its largest value for the log",
    "get_grad_norm_fp32": "the gradient norm becomes a number, which decides about clipping",
    "train": "the token count of the step",
    "training_log": "losses become numbers",
    "stop": "timers of a step that is logged",
    "start": "timers of a step that is logged",
    "all_gather_item": "dist_signal_handler.py: --exit-signal-handler, our default",
}
"""Functions of Megatron's own loop that wait, whatever is installed. Its fallbacks in torch count as ours."""


def owners(step: Step) -> Counter[str]:
    """Waits of the step by whose they are: "ours", or a function of Megatron's loop; others by their place."""
    found: Counter[str] = Counter()
    for place, number in step.waits.items():
        line, function = place.split(" < ")[0].split(" ")
        ours = "megatron_cod" in place.split(" < ")[0] or "faults/" in line or "_cod/" in line
        found["ours" if ours else function if function in LOOP else f"{line} {function}"] += number
    return found


@cache
def waits(mutant: str = "") -> Counter[str]:
    return owners(count(Path(mkdtemp()), *LLAMA_60M, mutant=mutant).whole)


def test_a_step_waits_for_the_device_in_few_known_places():
    """One wait of the check for NaN, two of the metrics of a step that is logged, none of Megatron's fallbacks in torch."""
    found = waits()
    unknown = set(found) - set(LOOP) - {"ours"}
    assert not unknown, unknown
    assert 1 <= found["ours"] <= OURS_AT_MOST, found


@pytest.mark.slow
@pytest.mark.parametrize("mutant", ["reads_the_loss", "one_norm_a_parameter"])
def test_a_mutant_is_caught(mutant):
    found = waits(mutant)
    others = {name: number for name, number in found.items() if name not in LOOP and name != "ours"}
    assert found["ours"] + sum(others.values()) > waits()["ours"] and (others or found["ours"] > OURS_AT_MOST)
