"""Where the host waits for the device in a training step: ours are few, and everybody else's are known by name."""

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.conftest import ROOT
from tests.cuda.counted import LLAMA_60M, Step, count
from tests.cuda.mutants import lengths_from_the_device, megatrons_rotary
from tests.cuda.runs import DEBUG, train

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
        file = line.split(":")[0].split("megatron_cod/")[-1]  # a place has the last folders of its path
        ours = (ROOT / "megatron_cod" / file).is_file()
        found["ours" if ours else function if function in LOOP else f"{line} {function}"] += number
    return found


@cache
def waits(mutant: str = "") -> Counter[str]:
    return owners(count(Path(mkdtemp()), *LLAMA_60M, mutant=mutant).whole)


@pytest.mark.slow
def test_a_step_waits_for_the_device_in_few_known_places():
    """One wait of the check for NaN, two of the metrics of a step that is logged, none of Megatron's fallbacks in torch."""
    found = waits()
    unknown = set(found) - set(LOOP) - {"ours"}
    assert not unknown, unknown
    assert 1 <= found["ours"] <= OURS_AT_MOST, found


def packed_run(folder: Path, before: Callable[[], None] | None = None) -> Counter[str]:
    """Files in whose functions a fine-tuning run on packed rows has waited, as often as that."""
    chats = [
        [{"role": "user", "content": f"How much is {n} plus {n}?"}, {"role": "assistant", "content": f"{2 * n}."}]
        for n in range(40)
    ]
    lines = [json.dumps({"messages": messages}) for messages in chats]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chats.jsonl").write_text("\n".join(lines))
    base = [*DEBUG, "--no-rope-fusion", "--vocab-size", "256", "--max-position-embeddings", "256"]
    train(
        1, folder / "base", *base, "--train-iters", "1", "--save", str(folder / "base"), "--save-interval", "1"
    ).succeeded()
    run = train(
        *(1, folder / "run", "--recipe", str(ROOT / "recipes" / "sft_debug.yaml"), "--num-layers", "4"),
        *("--no-rope-fusion", "--load", str(folder / "base"), "--save", str(folder / "run"), "--eval-iters", "0"),
        *("--sft-data-path", str(folder / "chats.jsonl"), "--sft-valid-share", "0.1", "--train-epochs", "1"),
        *("--save-interval", "1000", "--log-interval", "1"),
        entry="sft",
        before=before,
    ).succeeded()
    assert run.losses
    places = {name: number for name, number in run.reports[0].items() if name.startswith("@")}
    assert places
    files: Counter[str] = Counter()
    for place, number in places.items():
        files.update(dict.fromkeys({part.split("/")[-1].split(":")[0] for part in place.split(" ")}, number))
    return files


PACKED = ("torch_attention.py", "torch_self_attention.py", "rope_utils.py", "backends/packed_samples.py")


@pytest.mark.slow
def test_packed_rows_are_waited_for_nowhere(tmp_path):
    """Lengths are known on the host, and the rotary takes positions from the device."""
    found = packed_run(tmp_path)
    assert not {file: found[file] for file in PACKED if found[file]}


@pytest.mark.slow
@pytest.mark.parametrize(("mutant", "file"), [(lengths_from_the_device, PACKED[0]), (megatrons_rotary, PACKED[2])])
def test_a_wait_for_packed_rows_is_caught(mutant, file, tmp_path):
    assert packed_run(tmp_path, before=mutant)[file] > 0


@pytest.mark.slow
@pytest.mark.parametrize("mutant", ["reads_the_loss", "one_norm_a_parameter"])
def test_a_mutant_is_caught(mutant):
    found = waits(mutant)
    others = {name: number for name, number in found.items() if name not in LOOP and name != "ours"}
    assert found["ours"] + sum(others.values()) > waits()["ours"] and (others or found["ours"] > OURS_AT_MOST)
