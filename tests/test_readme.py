"""What the README tells a user to run, run: the quick start at toy size, the training command, help texts."""

import re
import shlex
import shutil
import sys

import pytest
import yaml

from megatron_cod.analysis.metrics import read_metrics
from megatron_cod.schemes.options import CommonOptions, names
from megatron_cod.schemes.table import SCHEMES
from tests.commands import TOY, readme_commands, run
from tests.conftest import ROOT


def checkout(folder):
    """A directory like a user's checkout."""
    for name in ("recipes", "tools", "examples"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """A directory in which a toy quick start has run."""
    home = checkout(tmp_path_factory.mktemp("home"))
    command = [sys.executable, str(ROOT / "examples" / "quickstart.py"), "--steps", "6", "--", *TOY]
    return home, run(command, home), command


ARMS = ("lns", "pre_ln_plain", "pre_ln_scaled")
RATES = ("0.004", "0.016")


@pytest.mark.slow
def test_quickstart_trains_each_arm_at_two_rates_and_reports_them(quickstart):
    home, output, _ = quickstart
    folder = home / "runs" / "quickstart"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line[:1] == "|"]
    arms = [["lns", "normal"], ["pre_ln", "normal"], ["pre_ln", "scaled"]]
    assert [row[:3] for row in rows[2:]] == [[*arm, rate] for arm in arms for rate in RATES]
    assert {row[4] for row in rows[2:]} == {f"{6 * 4 * 32:,}"}
    folders = [arm if rate == RATES[0] else f"{arm}_lr_{rate}" for arm in ARMS for rate in RATES]
    for row, arm in zip(rows[2:], folders, strict=True):
        metrics = read_metrics(folder / arm / "metrics.jsonl")
        assert row[3] == f"{int(metrics.last('parameters')):,}"
        assert row[6] == f"{metrics.last('lm loss validation'):.4f}"
        assert list(metrics.stream_variance()) == [1, 2, 3, 4]
        resolved = yaml.safe_load((folder / arm / "resolved_args.yaml").read_text())
        assert (resolved["norm-scheme"], resolved["init-policy"]) == tuple(row[:2])
        assert (resolved["lr"], resolved["min-lr"]) == (float(row[2]), float(row[2]) / 10)
        assert resolved["init-method-std"] == 0.1118  # 0.02 x sqrt(1000 / 32): the width given behind --
        assert resolved["pipeline-model-parallel-size"] == 2
    png = (folder / "comparison.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 20_000
    assert "norm factors 0.5774..0.5000" in output


@pytest.mark.slow
def test_the_arms_differ_only_in_scheme_and_initialisation(quickstart):
    home, _, _ = quickstart
    arms = [yaml.safe_load((home / "runs" / "quickstart" / arm / "resolved_args.yaml").read_text()) for arm in ARMS]
    for other in arms[1:]:
        differing = {key for key in arms[0] if arms[0][key] != other.get(key)}
        assert differing <= {"norm-scheme", "init-policy", "save", "tensorboard-dir"}


@pytest.mark.slow
def test_quickstart_is_safe_to_repeat(quickstart):
    home, first, command = quickstart
    before = (home / "runs" / "quickstart" / "lns" / "metrics.jsonl").stat().st_mtime_ns
    again = run(command, home)
    assert again.count("already trained, kept") == 6
    assert (home / "runs" / "quickstart" / "lns" / "metrics.jsonl").stat().st_mtime_ns == before
    table = [line for line in first.splitlines() if line[:1] == "|"]
    assert [line for line in again.splitlines() if line[:1] == "|"] == table


def test_training_command_of_the_readme_runs(tmp_path, text_data):
    home, data = checkout(tmp_path), tmp_path / "runs" / "quickstart" / "data"
    data.mkdir(parents=True)
    for file in text_data.glob("some_*_text_document.*"):  # as the quick start names them
        shutil.copy(file, data / file.name.replace("some", "sotu", 1))
    command = next(line for line in readme_commands() if line.startswith("megatron-cod train --nproc 2"))
    words = [sys.executable, "-m", "megatron_cod", *shlex.split(command)[1:], *TOY]
    output = run(words, home)
    assert "step 20/20 | loss" in output
    assert (home / "runs" / "first" / "iter_0000020").is_dir()


@pytest.mark.parametrize("command", [c for c in readme_commands() if c.endswith("--help")])
def test_help_commands(command):
    assert "usage" in run(shlex.split(command.replace("megatron-cod", f"{sys.executable} -m megatron_cod", 1)), ROOT)


def test_training_help_is_short_and_names_our_flags():
    output = run([sys.executable, "-m", "megatron_cod.training.pretrain", "--help"], ROOT)
    assert "--norm-scheme NAME" in output
    assert "sandwich_ln" in output
    of_schemes = len(names(CommonOptions)) + sum(len(names(row.options)) for row in SCHEMES.values())
    assert len(output.splitlines()) < 107 + 2 * of_schemes  # a flag of a scheme takes two lines


def test_quickstart_help_has_the_defaults():
    from megatron_cod.cli.quickstart import build_parser
    from megatron_cod.cli.quickstart_runs import RATES, STEPS

    text = " ".join(build_parser().format_help().split())
    assert f"(default: {STEPS} for the recipe debug" in text
    (rates,) = re.findall(r"default: (\S+) for recipe debug", text)
    assert tuple(map(float, rates.split(","))) == RATES


@pytest.mark.slow
def test_quickstart_dry_run_and_bad_input(tmp_path):
    script = [sys.executable, str(ROOT / "examples" / "quickstart.py")]
    output = run([*script, "--dry-run", "--tp", "2"], tmp_path)
    assert output.count("torchrun --nproc-per-node 4") == 6
    assert output.count("--init-method-std 0.06455") == 6  # 0.02 x sqrt(1000 / 96)
    assert not list(tmp_path.iterdir())
    assert "error: give --rates" in run([*script, "--", "--lr", "1e-3"], tmp_path, expect=2)
    assert "--rates: 1e-3,1e-3 is no list" in run([*script, "--rates", "1e-3,1e-3"], tmp_path, expect=2)
    assert run([*script, "--pp", "0"], tmp_path, expect=2).strip().startswith("error: --pp")
    output = run([*script, "--steps", "2", "--", "--num-layers", "5"], tmp_path, expect=2)
    assert "error: --num-layers 5 does not divide over --pipeline-model-parallel-size 2" in output
    assert "Traceback" not in output
