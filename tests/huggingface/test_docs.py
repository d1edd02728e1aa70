"""The commands of docs/huggingface.md run, in order, in a directory as the quick start leaves it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.distributed.runs import succeed


@pytest.mark.slow
def test_the_commands_of_the_page(tiny, text_data, tmp_path):
    for name in ("tools", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "hf").mkdir()
    data = tmp_path / "runs" / "quickstart" / "data"
    data.mkdir(parents=True)
    for file in text_data.glob("some_*"):
        (data / file.name.replace("some", "sotu")).symlink_to(file)
    flags = ["--max-position-embeddings", "64", "--save", str(tmp_path / "runs" / "first"), "--save-interval", "8"]
    succeed(1, [*tiny, *flags])
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "huggingface.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for block in blocks:
        done = subprocess.run(
            ["bash", "-e"], input=block, text=True, cwd=tmp_path, env=environment, capture_output=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "hf" / "first" / "config.json").is_file()
    assert (tmp_path / "runs" / "continued" / "latest_checkpointed_iteration.txt").read_text() == "10"
