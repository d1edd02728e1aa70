"""``rehearse --time`` and ``--suggest`` as they are called: text, JSON, and what they refuse."""

import json
import sys

import pytest

from megatron_cod.cli import rehearse
from megatron_cod.errors import UserError
from tests.planner.runs import SEVEN

CALL = [
    "--world-size",
    "16",
    *SEVEN,
    "--global-batch-size",
    "32",
    "--tensor-model-parallel-size",
    "2",
    "--sequence-parallel",
]


def call(monkeypatch, capsys, *flags: str) -> str:
    monkeypatch.setattr(sys, "argv", ["rehearse", *flags])
    rehearse.main()
    return capsys.readouterr().out


def test_time_is_printed_with_its_split_and_written(monkeypatch, capsys, tmp_path):
    path = tmp_path / "plan.json"
    cut = ("--pipeline-model-parallel-size", "2")
    out = call(
        monkeypatch, capsys, *CALL, *cut, "--time", "--machine", "h100", "--gpu-mtbf", "50700", "--json", str(path)
    )
    for text in ("time on h100, predicted:", "matrix products", "pipeline bubble", "DP communication", "goodput"):
        assert text in out
    found = json.loads(path.read_text())["time"]
    assert found["tokens_per_second_per_gpu"] == pytest.approx(32 * 2048 / found["seconds"] / 16)
    for stage in found["stages"]:
        assert sum(stage["split"].values()) == pytest.approx(found["seconds"])
    assert 0.9 < found["goodput"] < 1


def test_a_slower_network_in_a_file_takes_longer(monkeypatch, capsys, tmp_path):
    times = []
    for rate in (50, 5):
        machine, plan = tmp_path / f"net{rate}.yaml", tmp_path / f"{rate}.json"
        machine.write_text(f"base: h100\nnetwork_gbps: {rate}\n")
        call(monkeypatch, capsys, *CALL, "--time", "--machine", str(machine), "--json", str(plan))
        times.append(json.loads(plan.read_text())["time"]["seconds"])
    assert times[0] < times[1]


def test_suggestions_are_printed_and_written(monkeypatch, capsys, tmp_path):
    path = tmp_path / "found.json"
    out = call(monkeypatch, capsys, *CALL, "--suggest", "--machine", "a100_80gb", "--json", str(path))
    assert "flags of the first one:" in out
    found = json.loads(path.read_text())
    times = [one["time"]["seconds"] for one in found["best"]]
    assert len(times) == 10 and times == sorted(times)


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--time",), "--time needs --machine: a100_80gb, h100, h200, b200"),
        (("--suggest",), "--suggest needs --machine"),
        (("--machine", "h100"), "--machine is for --time and --suggest"),
        (("--gpu-mtbf", "9"), "--gpu-mtbf is for --time"),
        (("--time", "--machine", "h300"), "--machine h300 is neither"),
        (("--suggest", "--machine", "h100", "--all-stages"), "--suggest builds no rank"),
    ],
)
def test_rejects_flags_that_do_not_go_together(monkeypatch, capsys, flags, error):
    with pytest.raises(UserError, match=error):
        call(monkeypatch, capsys, *CALL, *flags)


def test_rejects_nodes_that_are_not_full(monkeypatch, capsys):
    with pytest.raises(UserError, match="--world-size 12 is not a multiple of the 8 GPUs"):
        call(monkeypatch, capsys, *("--world-size", "12", *CALL[2:]), "--time", "--machine", "h100")


def test_a_layout_that_is_refused_has_no_time(monkeypatch, capsys):
    with pytest.raises(UserError, match="--num-attention-heads 33"):
        call(monkeypatch, capsys, *CALL, "--num-attention-heads", "33", "--time", "--machine", "h100")
    assert "time on" not in capsys.readouterr().out


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_rejects_impossible_seconds(monkeypatch, capsys, value):
    for flag in ("--gpu-mtbf", "--save-seconds", "--restart-seconds"):
        with pytest.raises((UserError, SystemExit)):
            call(monkeypatch, capsys, *CALL, f"{flag}={value}")
