"""The launch templates: linted, short, and not different where they need not be."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted([*ROOT.glob("examples/**/*.sh"), *ROOT.glob("examples/**/*.sbatch")])
SHELL = [*SCRIPTS, *sorted(ROOT.glob("tools/*.sh"))]
JOBS = ["pretrain.sbatch", "pretrain_container.sbatch"]


def tool(name: str) -> str:
    found = Path(sys.executable).with_name(name)
    assert found.is_file(), f"{name} is in the dev extras"
    return str(found)


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    done = subprocess.run([tool("shellcheck"), "-x", "-P", str(ROOT), str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_shell_scripts_look_alike():
    done = subprocess.run([tool("shfmt"), "-d", "-i", "4", *map(str, SHELL)], capture_output=True, text=True)
    assert done.returncode == 0, f"shfmt -w -i 4 would change:\n{done.stdout}"


def test_the_container_template_is_the_other_one_in_a_container():
    """It sources pretrain.sbatch; only what Slurm reads of a file must be said in both."""
    plain, container = ((ROOT / "examples" / "slurm" / name).read_text() for name in JOBS)
    header = re.findall(r"^#SBATCH .*$", plain, re.M)
    assert len(header) > 5 and re.findall(r"^#SBATCH .*$", container, re.M) == header
    assert container.splitlines()[-1] == f". examples/slurm/{JOBS[0]}"
    shared = set(code_of(plain)) & set(code_of(container))
    assert all(line.startswith(("set ", "cd ", "RECIPE=", "DATA=", "SAVE=")) for line in shared), shared


def code_of(script: str) -> list[str]:
    return [line for line in script.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_templates_are_short_and_say_what_to_change(script):
    text = script.read_text()
    assert len(text.splitlines()) < 60
    if script.name != "environment.sh":
        assert "the five things to change" in text
        marked = text.split("the five things to change")[1].split("# -----")[0]
        assert len(re.findall(r"^[A-Z_]+=", marked, re.M)) == 5
        what = (
            "megatron_cod.training.pretrain",
            "preprocess_data.py",
            "examples/single_node.sh",
            "slurm/pretrain.sbatch",
        )
        assert any(name in text for name in what)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_sbatch_line_has_a_hash_in_it(script):
    """Slurm cuts an #SBATCH line at an unquoted #, silently."""
    for line in script.read_text().splitlines():
        if line.startswith("#SBATCH"):
            assert "#" not in line[1:], line
