"""examples/corpus_to_chat.py: the whole way at toy size, and what it says to wrong input."""

import json
import sys

import pytest

from megatron_cod.data.sample_corpus import sample_corpus_path
from tests.commands import run
from tests.conftest import ROOT, TINY

EXAMPLE = [sys.executable, str(ROOT / "examples" / "corpus_to_chat.py")]
STAGES = ["tokenizer", "preprocessing", "pretraining", "evaluation", "export", "fine-tuning", "question"]


def corpus(folder, documents: int):
    """Two sources of the sample's speeches, and one of a single speech, which is in one split only."""
    folder.mkdir()
    lines = sample_corpus_path().read_text().splitlines()[:documents]
    for name, share in (("even", lines[::2]), ("odd", lines[1::2])):
        (folder / f"{name}.jsonl").write_text("\n".join(share) + "\n")
    (folder / "single.jsonl").write_text(sample_corpus_path().read_text().splitlines()[-1] + "\n")
    return folder


@pytest.mark.slow
def test_rejects_wrong_input_in_one_line(tmp_path):
    out = ["--output", str(tmp_path / "out")]
    assert "is no directory" in run([*EXAMPLE, "--corpus", str(tmp_path / "none"), *out], tmp_path, expect=2)
    (tmp_path / "empty").mkdir()
    assert "holds no .jsonl file" in run([*EXAMPLE, "--corpus", str(tmp_path / "empty"), *out], tmp_path, expect=2)
    assert "is of another command" in _another_command(tmp_path)


def _another_command(tmp_path) -> str:
    out = tmp_path / "done"
    out.mkdir()
    (out / "stages.json").write_text(json.dumps({"asked": {"steps": "7"}, "done": {}}))
    return run([*EXAMPLE, "--corpus", str(tmp_path / "empty"), "--output", str(out)], tmp_path, expect=2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_way_and_then_nothing_is_done_twice(tmp_path):
    small = ["--vocab-size", "600", "--valid", "25", "--steps", "4", "--epochs", "1"]
    command = [*EXAMPLE, "--corpus", str(corpus(tmp_path / "texts", 24)), "--output", str(tmp_path / "out"), *small]
    command += ["--", *TINY[2:8]]
    output = run(command, tmp_path, timeout=1500)
    table = [line for line in output.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0].strip("| ") for line in table[1:]] == STAGES
    scores = json.loads((tmp_path / "out" / "perplexity.json").read_text())
    assert {one["name"] for one in scores["sets"]} - {"single"} == {"even", "odd"}
    assert all(1 < one["perplexity"] < 1000 for one in scores["sets"])
    assert (tmp_path / "out" / "hf_sft" / "chat_template.jinja").is_file()
    again = run(command, tmp_path, timeout=300)
    assert again.count(": kept, ") == len(STAGES) and "$ " not in again
