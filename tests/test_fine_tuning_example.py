"""examples/fine_tuning.py, and the commands of docs/sft.md: at toy size, and in earnest where slow tests are run."""

import re
import shlex
import sys

import pytest

from megatron_cod.data.sample_corpus import prepare_sample, sample_conversations
from tests.commands import run
from tests.conftest import ROOT, TINY
from tests.distributed.launch import run_training_ranks
from tests.training.fine_tuning.sft_runs import base, chats  # noqa: F401

EXAMPLE = [sys.executable, str(ROOT / "examples" / "fine_tuning.py")]


def losses(output: str) -> tuple[float, float]:
    return tuple(float(re.search(rf"  {when} +([\d.]+), perplexity", output)[1]) for when in ("before", "after"))


def test_the_conversations_are_real_and_held_apart():
    train, valid = sample_conversations()
    assert len(train) > 400 and len(valid) >= 30
    text = (ROOT / "megatron_cod" / "data" / "sample" / "sotu_1998_2021.jsonl").read_text()
    for one in [*train[::50], *valid[::10]]:
        assert one["completion"].replace('"', '\\"') in text
        assert re.match(r"Continue this speech of [\w. ]+, (19|20)\d\d: .{25,80}$", one["prompt"])
    years = [{one["prompt"].split(", ")[1][:4] for one in side} for side in (train, valid)]
    assert len(years[1]) == 2
    assert (train, valid) == sample_conversations()


@pytest.mark.slow
def test_runs_at_toy_size(base, tmp_path):  # noqa: F811
    toy = ["--base", str(base / "lns"), "--output", str(tmp_path / "out"), "--epochs", "1"]
    output = run([*EXAMPLE, *toy, "--", "--lr", "1e-2", "--global-batch-size", "8"], tmp_path)
    before, after = losses(output)
    assert after < before - 1.0  # a model of two steps knows nothing
    assert output.count("Continue this speech of ") >= 2 and "packed into " in output
    assert "is no pretrained run" in run([*EXAMPLE, "--base", str(tmp_path)], tmp_path, expect=2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_loss_on_unseen_answers_falls(tmp_path):
    """From the quick start's model, 24 layers, 250 steps of pretraining on the other speeches."""
    prefix = prepare_sample(tmp_path / "data")
    flags = ["--recipe", str(ROOT / "recipes" / "debug.yaml"), "--pipeline-model-parallel-size", "2"]
    flags += [
        "--train-data-path",
        f"{prefix}_train_text_document",
        "--valid-data-path",
        f"{prefix}_valid_text_document",
    ]
    ended = run_training_ranks(2, [*flags, "--save", str(tmp_path / "lns"), "--save-interval", "250"], timeout=1800)
    assert [rank.code for rank in ended] == [0, 0]
    output = run([*EXAMPLE, "--base", str(tmp_path / "lns"), "--output", str(tmp_path / "out")], tmp_path, timeout=1800)
    print(output)
    before, after = losses(output)
    assert after < before - 0.2


def docs_commands() -> list[str]:
    text = (ROOT / "docs" / "sft.md").read_text().replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


@pytest.mark.slow
def test_the_commands_of_the_docs(base, chats, tmp_path):  # noqa: F811
    train, export, ask = docs_commands()
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    (tmp_path / "chats.jsonl").write_text((chats / "train.jsonl").read_text())
    words = shlex.split(train.replace("runs/quickstart/lns", str(base / "lns")).replace("0.05", "0.2"))
    toy = [*TINY[2:8], "--train-epochs", "1"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    assert "step 1/" in run([*launcher, *words[1:], *toy], tmp_path)
    for command in (export, ask):
        run([sys.executable, *shlex.split(command)[1:]], tmp_path)
