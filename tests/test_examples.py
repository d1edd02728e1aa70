"""The launch templates and container files: linted, short, and not different where they need not be."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted([*ROOT.glob("examples/**/*.sh"), *ROOT.glob("examples/**/*.sbatch")])


def tool(name: str) -> str:
    found = Path(sys.executable).with_name(name)
    assert found.is_file(), f"{name} is in the dev extras"
    return str(found)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    done = subprocess.run([tool("shellcheck"), "-x", "-P", str(ROOT), str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_hadolint_has_nothing_to_say(name):
    done = subprocess.run([tool("hadolint"), str(ROOT / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_images_are_pinned_and_not_root(name):
    text = (ROOT / name).read_text()
    base = re.search(r"^ARG BASE=(\S+)$", text, re.M)[1]
    assert re.search(r":[\w.-]*\d", base), base
    assert text.rstrip().splitlines()[-2] == "USER 10001"
    assert text.index("requirements.docker.txt") < text.index("COPY megatron_cod")  # cached while the code changes
    pinned = [line for line in (ROOT / "requirements.docker.txt").read_text().splitlines() if not line.startswith("#")]
    assert pinned and all(re.fullmatch(r"[\w-]+==[\w.]+", line, re.I) for line in pinned)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_templates_are_short_and_say_what_to_change(script):
    text = script.read_text()
    assert len(text.splitlines()) < 60
    if script.name != "environment.sh":
        assert "the five things to change" in text
        marked = text.split("the five things to change")[1].split("# -----")[0]
        assert len(re.findall(r"^[A-Z_]+=", marked, re.M)) == 5
        assert "megatron_cod.training.pretrain" in text or "preprocess_data.py" in text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_sbatch_line_has_a_hash_in_it(script):
    """Slurm cuts an #SBATCH line at an unquoted #, silently."""
    for line in script.read_text().splitlines():
        if line.startswith("#SBATCH"):
            assert "#" not in line[1:], line
