"""Recipes and launch scripts come with the package, by name."""

import os
import subprocess

import pytest
import yaml

from megatron_cod import shipped
from megatron_cod.cli import init, recipes
from megatron_cod.errors import UserError
from megatron_cod.training.flags.recipe_files import load_recipe
from tests.cli.command import megatron_cod as command
from tests.conftest import ROOT


def test_the_package_holds_the_files_of_the_repository():
    assert {path.name for path in shipped.RECIPES.glob("*.yaml")} == {path.name for path in ROOT.glob("recipes/*.yaml")}
    scripts = [path for kind in ("sh", "sbatch") for path in ROOT.glob(f"examples/**/*.{kind}")]
    assert init.templates() == sorted(path.relative_to(ROOT / "examples") for path in scripts)


@pytest.mark.parametrize("name", shipped.names_in(shipped.RECIPES))
def test_a_recipe_is_found_by_name_and_by_path(name):
    assert load_recipe(name) == load_recipe(ROOT / "recipes" / f"{name}.yaml")


def test_a_file_comes_before_a_name_and_a_folder_after(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "debug").mkdir()
    assert load_recipe("debug") == load_recipe(ROOT / "recipes" / "debug.yaml")
    (tmp_path / "llama_1b").write_text("num-layers: 2\n")
    assert load_recipe("llama_1b") == {"num-layers": 2}


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("llama_1B", r"did you mean llama_1b\? \(megatron-cod recipes list\)"),
        ("recipes/llama_1b.yaml", "the package has it: give llama_1b instead of a path"),
        ("nothing", "the package has c4, corpus, debug"),
    ],
)
def test_wrong_recipes_name_the_right_one(asked, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"recipe {asked} does not exist; {hint}"):
        load_recipe(asked)


def test_recipes_are_listed_and_shown(tmp_path):
    listed = command("recipes", "list", cwd=tmp_path).stdout
    for folder in (shipped.RECIPES, shipped.STUDIES):
        for name in shipped.names_in(folder):
            line = next(line for line in listed.splitlines() if line.split()[:1] == [name])
            assert len(line.split()) > 3, f"{name} says nothing of itself: a comment at its head"
    shown = command("recipes", "show", "llama_1b", cwd=tmp_path).stdout
    text = (ROOT / "recipes" / "llama_1b.yaml").read_text()
    assert shown.startswith(text) and "# base llama_base.yaml:" in shown
    assert yaml.safe_load(shown) == yaml.safe_load(text)
    assert command("recipes", "show", "cpu_1m", cwd=tmp_path).stdout.startswith("#")
    wrong = command("recipes", "show", "llama_2b", cwd=tmp_path)
    assert wrong.returncode == 2 and "did you mean llama_" in wrong.stderr


def test_init_copies_scripts_that_run(tmp_path):
    done = command("init", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in init.templates():
        copied = tmp_path / "job" / "examples" / name
        assert copied.read_bytes() == (ROOT / "examples" / name).read_bytes()
        assert os.access(copied, os.X_OK) is copied.read_bytes().startswith(b"#!")
    script = tmp_path / "job" / "examples" / "single_node.sh"
    # A stand-in for Python prints what the script starts.
    environment = {**os.environ, "PYTHON": "/bin/echo", "PROCESSES": "2"}
    started = subprocess.run([script], env=environment, capture_output=True, text=True, check=True).stdout
    assert "--recipe debug" in started and "-m megatron_cod.training.pretrain" in started


def test_init_keeps_a_changed_script(tmp_path):
    init.copy_templates(tmp_path, overwrite=False)
    assert init.copy_templates(tmp_path, overwrite=False)  # equal files are no reason
    changed = tmp_path / "examples" / "single_node.sh"
    changed.write_text("#!/bin/sh\n")
    with pytest.raises(UserError, match="--overwrite replaces it"):
        init.copy_templates(tmp_path, overwrite=False)
    assert changed.read_text() == "#!/bin/sh\n"
    init.copy_templates(tmp_path, overwrite=True)
    assert changed.read_text() != "#!/bin/sh\n"


def test_no_recipe_has_the_name_of_a_study():
    assert not set(shipped.names_in(shipped.RECIPES)) & set(shipped.names_in(shipped.STUDIES))


def test_summaries_are_first_sentences(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("# One thing,\n# in two lines. Another.\n\nlr: 1\n")
    assert recipes._summary(path) == "One thing, in two lines"
