"""A rewind goes back to a checkpoint, passes over data, and is done once."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_cod.analysis.metrics import TRAIN_LOSS, read_metrics
from megatron_cod.checkpoint.directory import iterations, read_tracker
from megatron_cod.checkpoint.events import read_events
from megatron_cod.checkpoint.rewinds import Rewind, pending, read_rewinds
from megatron_cod.training.data.passed_over import PassedOver
from megatron_cod.training.faults import rewind
from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import refuse, succeed

SHORT = ["--train-iters", "12", "--lr-decay-iters", "12", "--eval-iters", "0", "--save-interval", "2"]


class Recorder:
    """Writes down the first tokens of each micro-batch, with the step."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self) -> None:
        import os

        from megatron_cod.training.data import batches
        from tests.training.faults.mutants import current_step

        get_batch = batches.get_batch

        def recorded(*args, **kwargs):
            batch = get_batch(*args, **kwargs)
            with open(f"{self.path}.{os.environ['RANK']}", "a") as file:
                file.write(json.dumps([current_step(), batch["tokens"][:, :8].tolist()]) + "\n")
            return batch

        batches.get_batch = recorded


def data_of(path, world: int) -> dict[int, list]:
    """Step -> what its ranks read, the last time that step was made."""
    found: dict[int, list] = {}
    for rank in range(world):
        mine: dict[int, list] = {}
        last = None
        for line in Path(f"{path}.{rank}").read_text().splitlines():
            step, tokens = json.loads(line)
            if step != last:
                mine[step] = []
            mine[step].append(tokens)
            last = step
        for step, tokens in mine.items():
            found.setdefault(step, []).append(tokens)
    return found


def run(tiny, save, record, *flags: str, world: int = 2):
    command = [*tiny, *SHORT, "--save", str(save), "--load", str(save), *flags]
    ended = run_training_ranks(world, command, before=Recorder(str(record)))
    assert [one.code for one in ended] == [0] * world, ended[0].output[-3000:]
    return ended


@pytest.mark.slow
def test_rewinds_to_a_step_and_skips_data(tiny, tmp_path):
    """DP 2. Steps 5 to 9 then see the data that an undisturbed run sees three steps later."""
    plain, save = tmp_path / "plain", tmp_path / "run"
    run(tiny, plain, tmp_path / "plain.data", "--train-iters", "15")
    run(tiny, save, tmp_path / "first.data", "--exit-interval", "8")
    back = ["--rewind-to", "4", "--rewind-skip", "3"]
    ended = run(tiny, save, tmp_path / "second.data", *back, "--exit-interval", "6")
    assert "rewound to step 4, past the data of 3 steps" in ended[0].output
    run(tiny, save, tmp_path / "third.data", *back)  # the same line, queued again: it goes on, and rewinds no more
    expected = data_of(tmp_path / "plain.data", 2)
    second, third = data_of(tmp_path / "second.data", 2), data_of(tmp_path / "third.data", 2)
    assert list(second) == [5, 6] and list(third) == [7, 8, 9, 10, 11, 12]
    for step, seen in {**second, **third}.items():
        assert seen == expected[step + 3] != expected[step]
    assert {path.name for path in save.glob("rewound-*")} == {"rewound-iter_0000006", "rewound-iter_0000008"}
    assert list(iterations(save))[-1] == 12 and read_tracker(save) == "12"
    assert [one["event"] for one in read_events(save)].count("rewind") == 1
    assert [(one.to, one.skip, one.first_sample, one.samples) for one in read_rewinds(save)] == [(4, 3, 16, 12)]


@pytest.mark.slow
def test_without_a_skip_a_rewind_repeats_the_run_to_the_bit(tiny, tmp_path):
    save = tmp_path / "run"
    run(tiny, save, tmp_path / "first.data")
    before = read_metrics(save / "metrics.jsonl").scalars[TRAIN_LOSS].copy()
    (save / "metrics.jsonl").rename(save / "old")
    run(tiny, save, tmp_path / "second.data", "--rewind-to", "6")
    after = read_metrics(save / "metrics.jsonl").scalars[TRAIN_LOSS]
    assert after == {step: loss for step, loss in before.items() if step > 6}


def arguments(save, to=4, skip=0, **more):
    given = {"save": str(save), "load": str(save), "rewind_to": to, "rewind_skip": skip, "ckpt_step": None}
    none = dict.fromkeys(("step_batch_size_schedule", "phase_transition_iterations"))
    return SimpleNamespace(**{**given, **none, "global_batch_size": 4, "dataloader_type": "single", **more})


def made(root, steps, tracker):
    for step in steps:
        folder = root / f"iter_{step:07d}"
        folder.mkdir(parents=True)
        (folder / "metadata.json").write_text("{}")
    (root / "latest_checkpointed_iteration.txt").write_text(str(tracker))


@pytest.mark.parametrize("moment", ["tracker", "record", "first rename"])
def test_rewind_survives_a_kill(tmp_path, monkeypatch, moment):
    """Whoever looks then resumes from the checkpoint that was asked for."""
    from megatron_cod.checkpoint.directory import newest_whole
    from megatron_cod.checkpoint.retention import clean

    made(tmp_path, [2, 4, 6, 8], 8)
    args = arguments(tmp_path, skip=1)
    name = {"tracker": "asdict", "record": "_free", "first rename": "_free"}[moment]
    calls = []

    def killed(value):
        calls.append(value)
        if moment != "first rename" or len(calls) > 1:
            raise KeyboardInterrupt
        return value

    monkeypatch.setattr(rewind, name, killed)
    with pytest.raises(KeyboardInterrupt):
        rewind.perform(args, 16)
    monkeypatch.undo()
    assert (pending(args) or newest_whole(tmp_path)[0]).name == "iter_0000004"
    rewind.perform(args, 16)
    clean(tmp_path, print)
    assert read_tracker(tmp_path) == "4" and list(iterations(tmp_path)) == [2, 4]
    assert len(read_rewinds(tmp_path)) == 1


def test_samples_are_skipped_from_where_they_were_consumed():
    dataset = PassedOver(range(100), [Rewind(2, 1, 8, 4), Rewind(5, 2, 20, 8)])
    assert len(dataset) == 88
    assert [dataset[index] for index in (0, 7, 8, 19, 20, 87)] == [0, 7, 12, 23, 32, 99]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), max_size=6))
@example([(40, 8), (20, 4)])  # back to before the first, whose samples stay out
def test_several_rewinds_in_any_order_are_a_list_with_samples_removed(places):
    """As each start saw the data: what was passed over before is gone, whether a rewind is to before or after it."""
    rewinds = [Rewind(number, 1, first, samples) for number, (first, samples) in enumerate(places)]
    left = list(range(120))
    for one in rewinds:
        del left[one.first_sample : one.first_sample + one.samples]
    dataset = PassedOver(range(120), rewinds)
    assert len(dataset) == len(left)
    assert [dataset[index] for index in range(len(left))] == left


WRONG = {
    "no such checkpoint": (arguments, {"to": 3}, r"--rewind-to 3: no such checkpoint in .*, there are 2, 4"),
    "elsewhere": (arguments, {"load": "/other"}, r"--rewind-to takes --load and --save of the same directory"),
    "no step": (arguments, {"to": None, "skip": 3}, r"--rewind-skip 3 needs --rewind-to STEP"),
    "cyclic": (arguments, {"skip": 3, "dataloader_type": "cyclic"}, r"does not go with --dataloader-type cyclic"),
    "and a step": (arguments, {"ckpt_step": 2}, r"give --rewind-to or --ckpt-step, not both"),
}


@pytest.mark.parametrize(("make", "given", "said"), WRONG.values(), ids=WRONG)
def test_rejects_wrong_rewinds(tmp_path, make, given, said):
    made(tmp_path, [2, 4], 4)
    args = make(tmp_path, **given)
    with pytest.raises(ValueError, match=said):
        rewind.check_rewind(args)
        pending(args)


def test_rejects_rewind_to_damaged_checkpoint(tmp_path):
    made(tmp_path, [2, 4], 4)
    (tmp_path / "iter_0000002" / "metadata.json").unlink()
    with pytest.raises(ValueError, match=r"iter_0000002 is corrupt: metadata.json is missing"):
        pending(arguments(tmp_path, to=2))


def test_run_reports_rewind_in_one_line(tiny, tmp_path):
    succeed(1, [*tiny, *SHORT, "--train-iters", "2", "--lr-decay-iters", "2", "--save", str(tmp_path / "s")])
    flags = [*tiny, *SHORT, "--save", str(tmp_path / "s"), "--load", str(tmp_path / "s")]
    refuse(1, [*flags, "--rewind-to", "1"], r"--rewind-to 1: no such checkpoint in .*, there are 2")
