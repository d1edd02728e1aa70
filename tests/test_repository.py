"""Promises of the house that a test can keep."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


MOST_LINES = 300
LONGER = {
    "megatron_cod/megatron_hooks.py",  # one table
    "tests/analysis/test_compare.py",
    "tests/data/preprocessing/test_preprocess.py",
    "tests/data/preprocessing/test_resume.py",
    "tests/gpu_emulation/preload/fakecuda.py",  # one table of functions
}
"""Files above the limit: this list must not grow, and a file that is divided leaves it."""


def longer_than(most: int, texts: dict[str, str]) -> set[str]:
    return {name for name, text in texts.items() if len(text.splitlines()) > most}


def test_files_have_at_most_300_lines():
    texts = {name: (ROOT / name).read_text() for name in tracked() if name.endswith(".py") and (ROOT / name).exists()}
    assert longer_than(MOST_LINES, texts) == LONGER


def test_finds_long_file():
    assert longer_than(2, {"a.py": "1\n2\n3\n", "b.py": "1\n2\n"}) == {"a.py"}


def test_no_test_file_imports_another():
    """Helpers are in modules of their own, so that a test file can change without its importers."""
    for name in tracked():
        if name.startswith("tests/") and name.endswith(".py") and (ROOT / name).exists():
            for module in imported(name):
                assert not (module.startswith("tests.") and module.rpartition(".")[2].startswith("test_")), (
                    name,
                    module,
                )


ACROSS = {"containers", "cuda", "cuda_te", "distributed", "docs", "packaging", "te"}
"""Folders of tests of no single folder of the package: devices, images, layouts, docs."""


def test_test_folders_mirror_the_package():
    for folder in sorted({Path(name).parent for name in tracked() if Path(name).match("tests/**/test_*.py")}):
        mirrored = folder.relative_to("tests")
        assert (mirrored.parts[:1] and mirrored.parts[0] in ACROSS) or (ROOT / "megatron_cod" / mirrored).is_dir(), (
            folder
        )


def test_texts_are_ascii():
    kinds = (".py", ".md", ".yaml", ".toml", ".sh", "Makefile")
    for name in tracked():
        if name.endswith(kinds):
            assert (ROOT / name).read_text().isascii(), name


def test_nothing_is_vendored_or_unpickled_blindly():
    for name in tracked():
        if name.endswith(".py") and not name.startswith("tests/"):
            text = (ROOT / name).read_text()
            assert "weights_only=False" not in text, name
            assert "NVIDIA CORPORATION" not in text, name


def imported(name: str) -> set[str]:
    tree = ast.parse((ROOT / name).read_text())
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return found | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}


def test_the_method_imports_torch_and_megatron_core_only():
    """The import contract cannot name a part of an external package, so megatron.training is kept out here."""
    rooms = (
        "megatron_cod/schemes/",
        "megatron_cod/backends/",
        "megatron_cod/layer_specs.py",
        "megatron_cod/depth_map.py",
    )
    files = [name for name in tracked() if name.startswith(rooms)]
    assert len(files) >= 8
    for name in files:
        for module in imported(name):
            top = module.split(".")[0]
            own = top in sys.stdlib_module_names or top in ("torch", "megatron_cod")
            # Installed or not; the choice of a backend imports these files only where it is.
            optional = top == "transformer_engine" and Path(name).name.startswith("te_")
            assert own or optional or module.startswith("megatron.core"), f"{name} imports {module}"


def test_huggingface_and_analysis_do_not_import_training():
    for name in tracked():
        if name.startswith(("megatron_cod/huggingface/", "megatron_cod/analysis/")):
            assert not any(module.startswith("megatron_cod.training") for module in imported(name)), name


_NO_SUCH_NAME = re.compile(
    r'.*(?:"type\[\w+\]"|Module|Module "[\w.]+") has no attribute .*|.*implementation or library stub for module .*'
)


def names_that_are_gone(*paths: str | Path) -> list[str]:
    """Names of classes and modules that these sources read or replace, and that do not exist: mypy's lines."""
    command = [sys.executable, "-m", "mypy", "--check-untyped-defs", *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout  # 2: it did not get to the names
    return _NO_SUCH_NAME.findall(done.stdout)


@pytest.mark.slow
def test_tests_replace_names_that_exist():
    """A mutant of a slow test would otherwise be found to patch nothing only when that test runs."""
    assert names_that_are_gone("tests") == []


def test_finds_name_that_is_gone(tmp_path):
    source = (
        "from megatron_cod.checkpoint.directory import {}\n"
        "from megatron_cod.training.faults.checkpoint_deletion import Retention\n"
        "Retention.{}\n"
        "import megatron_cod.{}\n"
    )
    (tmp_path / "wrong.py").write_text(source.format("gone", "gone", "gone"))
    (tmp_path / "right.py").write_text(source.format("iterations", "check_tracker", "args"))
    assert len(names_that_are_gone(tmp_path / "wrong.py")) == 3 and not names_that_are_gone(tmp_path / "right.py")
