"""tools/benchmark.py as a user runs it, at toy size. Nothing here looks at a time."""

import json

import pytest

from tests.programs import run_program

_TINY = [
    *("hf", "--layers", "2", "--hidden", "64", "--heads", "4", "--ffn", "176", "--vocab", "128"),
    *("--seq", "16", "--batch", "2", "--rounds", "2", "--warmup", "1"),
]


def benchmark(*arguments):
    return run_program("benchmark.py", *arguments)


def test_schemes_prints_a_table_and_writes_the_files(tmp_path):
    done = benchmark(
        *("schemes", "--num-layers", "2", "--rounds", "2", "--warmup", "0"),
        *("--json", tmp_path / "out.json", "--markdown", tmp_path / "out.md"),
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("Step time of norm schemes\nlayers 2, hidden 96")
    content = json.loads((tmp_path / "out.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["pre_ln", "lns", "lns_activation"]
    assert {name: len(laps) for name, laps in content["laps"].items()} == dict.fromkeys(content["laps"], 2)
    assert content["rows"][0]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    markdown = (tmp_path / "out.md").read_text()
    assert all(f"| {name} | step |" in markdown for name in ("pre_ln", "lns", "lns_activation"))


def test_hf_checks_then_splits_the_step(tmp_path):
    done = benchmark(*_TINY, "--profile", "--fused-adam", "--clock", "cpu", "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    assert "logits of pre_ln and transformers agree within" in done.stdout
    assert "losses of pre_ln and transformers agree within" in done.stdout
    assert "ms in operator" in done.stdout
    assert "aten::mm" in done.stdout
    content = json.loads((tmp_path / "out.json").read_text())
    parts = ("step", "forward+backward", "optimizer")
    expected = [(name, part) for part in parts for name in ("transformers", "pre_ln", "lns")]
    assert [(row["name"], row["part"]) for row in content["rows"]] == expected
    assert content["facts"]["AdamW"] == "fused"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["schemes", "--schemes", "lnz"], "no norm scheme 'lnz'"),
        (["schemes", "--recipe", "nowhere.yaml"], "recipe nowhere.yaml does not exist"),
        (["schemes", "--hiden-size", "3"], "unrecognized arguments: --hiden-size"),
        (["hf", "--rounds", "0"], "--rounds must be at least 1"),
        (["hf", "--json", "/no/such/folder/x.json"], "its folder does not exist"),
        (["hf", "--threads", "0"], "--threads must be at least 1"),
        ([*_TINY, "--num-attention-heads", "5"], "--hidden-size must be a multiple of --num-attention-heads"),
    ],
)
def test_reports_user_errors_in_one_line(arguments, message):
    done = benchmark(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in done.stderr


def test_help_explains_each_command():
    assert "{schemes,monitor,hf}" in benchmark("--help").stdout
    assert "lns_activation" in benchmark("schemes", "--help").stdout
    assert "--fused-adam" in benchmark("hf", "--help").stdout
