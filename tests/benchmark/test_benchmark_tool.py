"""tools/benchmark.py as a user runs it, at toy size. Nothing here looks at a time."""

import json

import pytest

from tests.programs import run_program

_TINY = [
    *("hf", "--layers", "2", "--hidden", "64", "--heads", "4", "--ffn", "176", "--vocab", "128"),
    *("--seq", "16", "--batch", "2", "--rounds", "2", "--warmup", "1"),
]


ARMS = ("transformers", "transformers again", "pre_ln", "lns")


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
    done = benchmark(*_TINY, "--profile", "--clock", "cpu", "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    assert "logits of pre_ln and transformers agree within" in done.stdout
    assert "losses of pre_ln and transformers agree within" in done.stdout
    assert "ms in operator" in done.stdout
    assert "aten::mm" in done.stdout
    content = json.loads((tmp_path / "out.json").read_text())
    parts = ("step", "forward+backward", "optimizer")
    expected = [(name, part) for part in parts for name in ARMS]
    assert [(row["name"], row["part"]) for row in content["rows"]] == expected


@pytest.mark.parametrize("work", [[], ["--evaluation"]], ids=["training", "evaluation"])
@pytest.mark.slow
def test_megatrons_flags_win_over_the_shape(tmp_path, work):
    flags = ["--num-layers", "3", "--hidden-size", "32", "--seq-length", "24", "--max-position-embeddings", "24"]
    done = benchmark(*_TINY, *work, *flags, "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "out.json").read_text())["facts"]
    assert (facts["layers"], facts["hidden"], facts["batch"].split(" x ")[1]) == (3, 32, "24")


@pytest.mark.slow
def test_the_table_has_a_row_of_each_run_and_resumes(tmp_path, monkeypatch, capsys):
    from megatron_cod.cli import benchmark_table as table

    row = table.TableRow("evaluation", (2, 64, 4, 176, 128), (2, 16), 2)
    monkeypatch.setattr(table, "ROWS", {"one": row, "two": table.TableRow("training step", row.shape, (2, 16), 2)})
    table.make_table(["one"], tmp_path, None, 1, "cpu")
    first = (tmp_path / "one.json").read_bytes()
    table.make_table(["one", "two"], tmp_path, None, 1, "cpu")
    assert (tmp_path / "one.json").read_bytes() == first
    _, _, one, two, *_ = (tmp_path / "table.md").read_text().splitlines()
    assert one.startswith("| evaluation | 2 x 64 | 128 x 16 |") and two.startswith(
        "| training step | 2 x 64 | 2 x 16 |"
    )
    results = json.loads((tmp_path / "table.json").read_text())
    median = next(found["ratio"]["median"] for found in results["two"]["rows"] if found["name"] == "lns")
    assert two.split("|")[6].strip().startswith(f"{median:.3f} (")
    assert "one.json is there, kept" in capsys.readouterr().out


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
        ([*_TINY, "--global-batch-size", "4"], "--global-batch-size 4: the comparison takes one micro-batch a step"),
        ([*_TINY, "--group-query-attention", "--num-query-groups", "2"], "--num-query-groups 2: the comparison has"),
        ([*_TINY, "--kv-channels", "8"], "--kv-channels 8: the comparison has 64 / 4"),
        (["table", "--hidden-size", "8"], "benchmark table takes no other flags: --hidden-size 8"),
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
    assert "{schemes,monitor,hf,table}" in benchmark("--help").stdout
    assert "lns_activation" in benchmark("schemes", "--help").stdout
    assert "--evaluation" in benchmark("hf", "--help").stdout
    assert "train_130m_4x256" in benchmark("table", "--help").stdout


def test_recipes_that_name_no_tokenizer_file_are_timed_without_one():
    from megatron_cod.benchmark.engine import _without_tokenizer

    assert _without_tokenizer(["--recipe", "llama_60m"]) == [
        "--tokenizer-type",
        "NullTokenizer",
        "--vocab-size",
        "32000",
    ]
    assert _without_tokenizer(["--recipe", "debug"])[-2:] == ["--vocab-size", "257"]
    assert _without_tokenizer(["--recipe", "llama_60m", "--tokenizer-model", "t5.model"]) == []
