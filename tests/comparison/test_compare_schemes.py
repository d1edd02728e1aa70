"""compare_schemes on toy models: what it writes, a stop in the middle, an arm that diverges, wrong input."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_cod.analysis.metrics import TRAIN_LOSS, VALID_LOSS, Metrics, read_metrics
from megatron_cod.comparison.arms import parse_arm, parse_arms
from megatron_cod.comparison.report import noise, pooled_deviation, row_of, table
from megatron_cod.comparison.runs import Outcome, how_it_diverged
from megatron_cod.schemes.table import SCHEMES
from tests.conftest import ROOT

TOY = ["--num-layers", "4", "--hidden-size", "32", "--ffn-hidden-size", "64", "--seq-length", "32", "--eval-iters", "1"]
ARMS = "lns,pre_ln+normal,lns+lr=1e19"


def command(output: Path, *more: str) -> list[str]:
    tool = [
        sys.executable,
        str(ROOT / "tools" / "compare_schemes.py"),
        "--recipe",
        str(ROOT / "recipes" / "debug.yaml"),
    ]
    flags = ["--clip-grad", "0", "--log-interval", "1", "--lr-decay-style", "constant", "--unset", "lr-warmup-fraction"]
    return [*tool, "--steps", "8", "--save-interval", "2", "--output", str(output), *more, "--", *TOY, *flags]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(line: list[str], expect: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == expect, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def test_lns_with_scaled_initialisation_has_a_name():
    assert (
        parse_arm("lns_scaled").flags
        == parse_arm("lns+scaled").flags
        == ("--norm-scheme", "lns", "--init-policy", "scaled")
    )
    assert parse_arm("lns_scaled+lr=1e-3").flags[-2:] == ("--lr", "1e-3")


def test_every_scheme_is_an_arm():
    for name in SCHEMES:
        assert parse_arm(name).flags == ("--norm-scheme", name)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    output = tmp_path_factory.mktemp("compared") / "o"
    line = command(output, "--schemes", ARMS, "--seeds", "1,2")
    return output, line, run(line).stdout


@pytest.mark.slow
def test_writes_table_curves_and_commands(compared):
    output, _, said = compared
    text = (output / "results.md").read_text()
    assert text in said
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert {row.split("|")[1].strip() for row in rows} == set(ARMS.split(","))
    assert rows[-1].startswith("| lns+lr=1e19 | - |")
    assert rows[-1].endswith("| diverged |")
    assert "Diverged: lns+lr=1e19, seed 1: step 2: the output of layer 1 is not finite" in text
    assert "The standard deviation over seeds, all arms together, is 0." in text
    with (output / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["arm"], line["seed"]) for line in lines] == [(a, s) for a in ARMS.split(",") for s in ("1", "2")]
    measured = read_metrics(output / "lns" / "seed_2" / "metrics.jsonl")
    assert float(lines[1]["valid_loss"]) == pytest.approx(measured.last(VALID_LOSS), abs=1e-6)
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert len((output / "commands.sh").read_text().splitlines()) == 6


@pytest.mark.slow
def test_arms_of_one_seed_see_the_same_tokens(compared):
    """Before the first update only the scheme differs: the same data, the same initial embedding."""
    output, _, _ = compared
    first = [
        read_metrics(output / arm / "seed_1" / "metrics.jsonl").series(TRAIN_LOSS)[1][0]
        for arm in ("lns", "lns_lr-1e19")
    ]
    assert first[0] == first[1]
    other_seed = read_metrics(output / "lns" / "seed_2" / "metrics.jsonl").series(TRAIN_LOSS)[1][0]
    assert other_seed != first[0]


@pytest.mark.slow
def test_repeating_keeps_finished_runs(compared):
    _, line, said = compared
    again = run(line).stdout
    assert again.count("already trained, kept") == 6
    assert again.split("\n\n", 1)[1] == said.split("\n\n", 1)[1]


@pytest.mark.slow
def test_a_stopped_run_resumes_and_ends_the_same(compared, tmp_path):
    output, _, _ = compared
    line = command(tmp_path / "o", "--schemes", "lns", "--seeds", "1")
    process = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
        # Where the tests themselves were started in the background, a shell had them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    tracker = tmp_path / "o" / "lns" / "seed_1" / "latest_checkpointed_iteration.txt"
    deadline = time.monotonic() + 120
    while not tracker.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    said = run(line).stdout
    assert "1/1 lns seed 1: resuming" in said
    went_on = read_metrics(tmp_path / "o" / "lns" / "seed_1" / "metrics.jsonl")
    whole = read_metrics(output / "lns" / "seed_1" / "metrics.jsonl")
    assert went_on.scalars[TRAIN_LOSS] == whole.scalars[TRAIN_LOSS]
    assert went_on.last(VALID_LOSS) == whole.last(VALID_LOSS)


@pytest.mark.slow
def test_another_command_is_trained_anew(compared, tmp_path):
    output, _, _ = compared
    shutil.copytree(output, tmp_path / "o")
    said = run(command(tmp_path / "o", "--schemes", "lns", "--seeds", "1", "--tp", "1", "--fresh")).stdout
    assert "1/1 lns seed 1: training" in said


WRONG = {
    "unknown scheme": (["--schemes", "lns,sandwitch_ln"], r"no norm scheme 'sandwitch_ln'.*did you mean sandwich_ln?"),
    "unknown part": (["--schemes", "lns+placement=mlp"], "'placement=mlp' is not known"),
    "twice": (["--schemes", "lns,lns"], "lns given twice"),
    "contradiction": (
        ["--schemes", "pre_ln+lns-exponent=1"],
        "--lns-exponent does not go with --norm-scheme pre_ln",
    ),
    "layout": (["--schemes", "lns", "--pp", "3"], "--num-layers 4"),
    "a later arm's flag": (["--schemes", "lns,pre_ln+lr=nan"], "--lr nan"),
    "a later arm's scheme, in a dry run": (["--schemes", "lns,mix_ln+mix-ln-post-layers=9", "--dry-run"], "9"),
    "data": (["--schemes", "lns", "--data", "nowhere/it"], "nowhere/it_train_text_document"),
}


@pytest.mark.parametrize(("flags", "said"), WRONG.values(), ids=WRONG)
@pytest.mark.slow
def test_rejects_wrong_input_in_one_line(tmp_path, flags, said):
    error = run(command(tmp_path / "o", "--seeds", "1", *flags), 2).stderr
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert said.split(".*")[0] in lines[0] and said.split(".*")[-1] in lines[0]
    assert "Traceback" not in error
    assert not (tmp_path / "o").exists()


def test_arms_are_scheme_and_flags():
    assert parse_arm("pre_ln+normal").flags == ("--norm-scheme", "pre_ln", "--init-policy", "normal")
    assert parse_arm("lns+gamma-init+lns-exponent=1").flags[2:] == ("--gamma-init", "--lns-exponent", "1")
    assert [arm.folder for arm in parse_arms("lns, mix_ln+mix-ln-post-layers=3")] == [
        "lns",
        "mix_ln_mix-ln-post-layers-3",
    ]
    with pytest.raises(ValueError, match="no arms given"):
        parse_arms(" ,")


def outcome(valid: float, train: list[float] | None = None) -> Outcome:
    losses = dict(enumerate(train or [valid] * 3, 1))
    metrics = Metrics({TRAIN_LOSS: losses, VALID_LOSS: {len(losses): valid}})
    return Outcome(metrics, how_it_diverged(metrics), 1.0)


def test_noise_is_two_standard_errors():
    rows = [row_of("a", {1: outcome(2.0), 2: outcome(2.2)}), row_of("b", {1: outcome(2.2), 2: outcome(2.4)})]
    assert pooled_deviation(rows) == pytest.approx(0.02**0.5)
    assert noise(0.1, *rows) == pytest.approx(0.2)
    assert "| +0.2000, within noise |" in table(rows)
    far = row_of("c", {1: outcome(3.0), 2: outcome(3.0)})
    assert "| +0.9000 |" in table([*rows, far])
    assert "One seed each" in table([row_of("a", {1: outcome(2.0)})])


def test_recognizes_divergence():
    assert how_it_diverged(outcome(2.0).metrics) is None
    assert outcome(float("nan"), [5.0, 4.0, 3.0]).diverged == "validation loss nan"
    assert outcome(2.0, [5.0, 4.0, float("inf")]).diverged == "loss inf at step 3"
    rose = outcome(5.5, [6.0] * 5 + [2.0] * 40 + [5.5] * 40)
    assert rose.diverged == "loss rose from 2.00 to 5.50"
