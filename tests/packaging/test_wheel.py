"""The wheel and the sdist hold all that the command needs; the metadata is complete."""

import ast
import itertools
import re
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import megatron_cod
from megatron_cod.cli import init
from megatron_cod.cli.main import COMMANDS, PACKAGES, missing_package
from megatron_cod.cli.training import ENTRIES
from megatron_cod.shipped import RECIPES, STUDIES, names_in
from tests.conftest import ROOT
from tests.packaging.build import build, copy_of_the_checkout

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packaging")
    return zipfile.ZipFile(build("wheel", copy_of_the_checkout(folder / "source"), folder / "dist"))


def needed() -> set[str]:
    """Files that an installed package must have."""
    sources = [
        path.relative_to(ROOT).as_posix() for path in (ROOT / "megatron_cod").rglob("*.py*") if path.suffix != ".pyc"
    ]
    shipped = [f"megatron_cod/recipes/{name}.yaml" for name in names_in(RECIPES)]
    shipped += [f"megatron_cod/recipes/studies/{name}.yaml" for name in names_in(STUDIES)]
    shipped += [f"megatron_cod/templates/{name}" for name in init.templates()]
    shipped += [f"megatron_cod/cli/help/{name}.txt" for name in (*ENTRIES, "flags")]
    data = [
        path for folder in ("data/sample", "data/chat/templates") for path in (ROOT / "megatron_cod" / folder).iterdir()
    ]
    shipped += [path.relative_to(ROOT).as_posix() for path in data if path.is_file()]
    return {*sources, *shipped, "megatron_cod/py.typed"}


@pytest.mark.slow
def test_the_wheel_is_whole(wheel):
    names = set(wheel.namelist())
    assert needed() <= names, needed() - names
    assert len(needed()) > 300
    others = {name for name in names - needed() if ".dist-info/" not in name}
    assert not others, others


def test_recipes_and_scripts_are_files_and_no_links(wheel):
    assert wheel.read("megatron_cod/recipes/debug.yaml") == (ROOT / "recipes" / "debug.yaml").read_bytes()
    script = wheel.read("megatron_cod/templates/slurm/pretrain.sbatch")
    assert script == (ROOT / "examples" / "slurm" / "pretrain.sbatch").read_bytes()


def test_the_wheel_has_the_command_and_its_metadata(wheel):
    folder = f"megatron_cod-{megatron_cod.__version__}.dist-info"
    assert "megatron-cod = megatron_cod.cli.main:main" in wheel.read(f"{folder}/entry_points.txt").decode()
    found = Parser().parsestr(wheel.read(f"{folder}/METADATA").decode())
    assert found["Version"] == megatron_cod.__version__ and found["Author"] == "megatron_cod developers"
    assert found["License-Expression"] == "Apache-2.0" and len(found["Keywords"].split(",")) > 4
    assert {line.split(",")[0] for line in found.get_all("Project-URL")} >= {"Source", "Documentation", "Paper"}
    assert len(found.get_all("Classifier")) > 8
    text = found.get_payload()
    relative = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link and not link.startswith("#")]
    assert "# megatron_cod" in text and relative == []
    assert re.search(
        rf"!\[[^\]]+\]\({re.escape(PROJECT['urls']['Source'])}/raw/main/docs/images/quickstart.png\)", text
    )


def test_without_extras_only_what_the_layers_need():
    assert {re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]} == {
        "torch",
        "megatron-core",
        "numpy",
        "triton",
    }


IMPORTED_AS = {"pyyaml": "yaml"}


def test_the_commands_know_what_is_in_each_extra():
    """``megatron-cod`` names the extra that is missing: its table is that of pyproject.toml."""
    extras = PROJECT["optional-dependencies"]
    for name, modules in PACKAGES.items():
        listed = {IMPORTED_AS.get(line, line) for line in extras[name] if not line.startswith("megatron-cod[")}
        assert listed == {module for module in modules if module not in ("torch", "megatron.training")}, name
    order = list(PACKAGES)
    for before, name in itertools.pairwise(order):
        assert f"megatron-cod[{before}]" in extras[name]
    assert extras["all"] == [f"megatron-cod[{','.join(('train', 'data', 'hf', 'analysis'))}]"]
    assert {row.extra for row in COMMANDS.values()} <= {"", *PACKAGES}


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(PACKAGES, "train", ("no_such_package",))
    assert missing_package("data") is None and missing_package("") is None
    assert missing_package("train") == missing_package("analysis") == "no_such_package"


def test_the_version_is_said_once():
    assert "version" in PROJECT["dynamic"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{megatron_cod.__version__}]" in changelog
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == megatron_cod.__version__ and citation["cff-version"] == "1.2.0"
    assert citation["repository-code"] == PROJECT["urls"]["Source"]
    assert citation["preferred-citation"]["identifiers"][0]["value"] == "arXiv:2502.05795"


def test_the_project_has_the_files_of_a_release():
    for name in (
        "SECURITY.md",
        "CITATION.cff",
        "LICENSE",
        ".github/pull_request_template.md",
        ".github/workflows/release.yml",
    ):
        assert (ROOT / name).stat().st_size > 300, name
    for path in (ROOT / ".github").rglob("*.yml"):
        assert yaml.safe_load(path.read_text()), path
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    assert any("python -m build" in step for step in steps)
    assert any("tests/packaging/first_commands.sh" in step for step in steps)


@pytest.mark.slow
def test_the_sdist_makes_the_same_wheel(wheel, tmp_path):
    source = copy_of_the_checkout(tmp_path / "source")
    with tarfile.open(build("sdist", source, tmp_path / "dist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    again = zipfile.ZipFile(build("wheel", folder, tmp_path / "again"))
    assert set(again.namelist()) == set(wheel.namelist())
    assert again.read("megatron_cod/recipes/debug.yaml") == wheel.read("megatron_cod/recipes/debug.yaml")


def test_every_module_parses_as_the_oldest_python():
    for path in sorted((ROOT / "megatron_cod").rglob("*.py")):
        ast.parse(path.read_text(), feature_version=(3, 12))
    assert Path(ROOT / "megatron_cod" / "py.typed").exists()
