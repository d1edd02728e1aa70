"""Modules of version 0.1.0 can be imported by their former paths."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import megatron_cod
from megatron_cod.former_paths import BECAME_PACKAGES, MOVED, NAMES, PACKAGE

ROOT = Path(megatron_cod.__file__).parent

# What the examples of 0.1.0 imported.
OF_EXAMPLES = [
    ("data.record", "read_record"),
    ("training.launch", "run_training"),
    ("training.launch", "RunFailed"),
    ("training.recipes", "load_recipe"),
    ("training.checkpoints", "RESOLVED"),
    ("data.preprocess", "PreprocessJob"),
    ("data.preprocess", "preprocess"),
    ("data.tokenizers", "TokenizerChoice"),
]


def test_former_paths_are_free_and_present_ones_exist():
    modules = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        for path in ROOT.rglob("*.py")
    }
    assert not set(MOVED) & modules
    assert set(MOVED.values()) <= modules
    assert set(BECAME_PACKAGES) <= modules and set(BECAME_PACKAGES.values()) <= modules
    assert {former for former, _ in NAMES} <= set(MOVED)


@pytest.mark.parametrize(("former", "name"), [*OF_EXAMPLES, *NAMES])
def test_names_are_found_by_former_paths(former, name):
    found = getattr(importlib.import_module(PACKAGE + former), name)
    places = MOVED | BECAME_PACKAGES
    module, _, present = NAMES.get((former, name), f"{places[former]}.{name}").rpartition(".")
    assert found is vars(importlib.import_module(PACKAGE + module))[present]


def test_a_former_module_is_the_present_one_with_a_warning():
    sys.modules.pop("megatron_cod.data.record", None)
    with pytest.warns(DeprecationWarning, match="megatron_cod.data.record is megatron_cod.data.datasets.manifest now"):
        former = importlib.import_module("megatron_cod.data.record")
    present = importlib.import_module("megatron_cod.data.datasets.manifest")
    assert former.read_record is present.read_record
    assert present.__spec__ is not None and present.__spec__.name == "megatron_cod.data.datasets.manifest"


@pytest.mark.parametrize("name", ["megatron_cod.data.nothing", "megatron_cod.identities"])
def test_other_modules_are_not_found(name):
    with pytest.raises(ModuleNotFoundError, match=name):
        importlib.import_module(name)


@pytest.mark.parametrize("former", [*BECAME_PACKAGES, "data.record"])
def test_names_that_never_were_are_not_found(former):
    module = importlib.import_module(PACKAGE + former)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = module.nothing_of_the_kind
    with pytest.raises(ImportError):
        exec(f"from {PACKAGE}{former} import nothing_of_the_kind")


@pytest.mark.slow
def test_what_prepares_for_megatron_is_imported_first():
    code = (
        "import megatron_cod.training.environment, sys; print('megatron_cod.training.before_megatron' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_tokens_of_a_prompt_are_a_list(monkeypatch):
    generation = importlib.import_module("megatron_cod.huggingface.generation")
    monkeypatch.setattr(generation, "next_tokens", lambda *given: iter(given))
    assert generation.go_on(1, 2, 3) == [1, 2, 3]
