"""The first command of docs/evaluation.md runs, in a directory as the quick start leaves it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.distributed.test_resume import succeed


def blocks() -> list[str]:
    return re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "evaluation.md").read_text(), re.DOTALL)


def run_block(block: str, home: Path, **more: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **more}
    done = subprocess.run(["bash", "-e"], input=block, text=True, cwd=home, env=environment, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_command_of_the_page(tiny, text_data, tmp_path):
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
