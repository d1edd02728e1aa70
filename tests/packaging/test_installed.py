"""The wheel in an environment of its own, in an empty folder: the first commands of a newcomer (make test-wheel)."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.packaging.build import build, copy_of_the_checkout

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The programs of an environment with the wheel, and with the packages of this one beside it: torch takes minutes."""
    folder = tmp_path_factory.mktemp("installed")
    wheel = build("wheel", copy_of_the_checkout(folder / "source"), folder / "dist")
    home = folder / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel], check=True)
    # A path in a .pth file is not searched for .pth files itself: the editable checkout of this environment is not seen.
    (own,) = (home / "lib").glob("python*/site-packages")
    (own / "beside.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return home / "bin"


def environment(programs: Path) -> dict[str, str]:
    launcher = ("PYTHONPATH", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in launcher}
    return {**kept, "PATH": f"{programs}:/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}


def test_the_package_is_the_installed_one(installed, tmp_path):
    code = "import megatron_cod, megatron_cod.layer_specs; print(megatron_cod.__file__)"
    done = subprocess.run(
        [installed / "python", "-c", code], cwd=tmp_path, env=environment(installed), capture_output=True
    )
    found = Path(done.stdout.decode().splitlines()[-1])
    assert installed.parent in found.parents and ROOT not in found.parents


@pytest.mark.timeout(3600)
def test_first_commands_in_an_empty_folder(installed, tmp_path):
    empty, transcript = tmp_path / "empty", Path(os.environ.get("TRANSCRIPT", tmp_path / "transcript.txt"))
    empty.mkdir()
    script = ROOT / "tests" / "packaging" / "first_commands.sh"
    variables = environment(installed) | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with transcript.open("w") as out:
        done = subprocess.run([script], cwd=empty, env=variables, stdout=out, stderr=subprocess.STDOUT)
    text = transcript.read_text()
    assert done.returncode == 0, text[-4000:]
    assert "training on State of the Union speeches" in text and "saving every 1000 steps" in text
    assert [line for line in text.splitlines() if "Warning: " in line] == []  # of libraries, which a user cannot heed
    assert str(ROOT) not in text, "a file of the checkout was used"
    assert not [name for name in ("tools/", "recipes/") if f" {name}" in text]


IMPORTS = """
import sys
from importlib.machinery import PathFinder
real = PathFinder.find_spec
def find(name, path=None, target=None):
    return None if name.split(".")[0] in {blocked!r} else real(name, path, target)
PathFinder.find_spec = staticmethod(find)
import megatron_cod.training.before_megatron
import importlib
for name in {modules!r}:
    importlib.import_module(name)
"""
OPTIONAL = {
    "data": {"orjson", "yaml", "rich", "sentencepiece", "tokenizers", "transformers", "zstandard"},
    "train": {"omegaconf", "psutil", "tensorboard"},
    "hf": {"safetensors"},
    "analysis": {"matplotlib"},
}
MODULES = {
    "": ["megatron_cod.layer_specs", "megatron_cod.schemes.table", "megatron_cod.depth_map", "megatron_cod.pipeline"],
    "data": ["megatron_cod.data.preprocessing.run", "megatron_cod.data.tokenizers.sentencepiece_training"],
    "train": [
        *("megatron_cod.training.run", "megatron_cod.training.pretraining", "megatron_cod.training.evaluation.run"),
        *("megatron_cod.training.fine_tuning.task", "megatron_cod.rehearsal.launch", "megatron_cod.preflight.table"),
    ],
    "hf": [
        "megatron_cod.huggingface.export",
        "megatron_cod.huggingface.importing",
        "megatron_cod.huggingface.generation",
    ],
    "analysis": ["megatron_cod.analysis.plots", "megatron_cod.study.command", "megatron_cod.analysis.depth.report"],
}


@pytest.mark.parametrize("extra", MODULES)
def test_each_extra_is_enough_for_its_commands(extra):
    later = [name for number, name in enumerate(OPTIONAL) if not extra or number > list(OPTIONAL).index(extra)]
    blocked = set().union(*(OPTIONAL[name] for name in later))
    code = IMPORTS.format(blocked=blocked, modules=MODULES[extra])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
