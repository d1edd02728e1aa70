"""The first command of docs/evaluation.md runs, in a directory as the quick start leaves it."""

import json

import pytest

from tests.conftest import ROOT
from tests.distributed.runs import succeed
from tests.training.evaluation.page import blocks, run_block


@pytest.mark.slow
def test_command_of_the_page_runs(tiny, text_data, tmp_path):
    assert len(blocks()) == 2
    data, sample = tmp_path / "runs" / "quickstart" / "data", tmp_path / "megatron_cod" / "data" / "sample"
    data.mkdir(parents=True)
    sample.mkdir(parents=True)
    for file in text_data.glob("some_*"):
        (data / file.name.replace("some", "sotu")).symlink_to(file)
    name = "sotu_1998_2021.jsonl"
    lines = (ROOT / "megatron_cod" / "data" / "sample" / name).read_text().splitlines()
    short = [{**json.loads(line), "text": json.loads(line)["text"][:300]} for line in (lines[0], lines[-1])]
    (sample / name).write_text("".join(json.dumps(record) + "\n" for record in short))
    flags = ["--train-iters", "2", "--eval-iters", "0", "--save", str(tmp_path / "runs" / "first")]
    succeed(1, [*tiny, *flags, "--save-interval", "2"])
    output = run_block(blocks()[0], tmp_path, PYTHONPATH=str(ROOT))
    assert "speeches/William J Clinton" in output and "speeches/Joseph R Biden" in output
    found = json.loads((tmp_path / "runs" / "first" / "perplexity.json").read_text())
    assert found["sets"][0]["name"] == "sotu" and found["total"]["bits_per_byte"] > 0
