"""Promises of the house that a test can keep."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


def test_files_are_short():
    sizes = {name: len((ROOT / name).read_text().splitlines()) for name in tracked() if name.endswith(".py")}
    assert max(sizes.values()) <= 600
    assert statistics.median(n for name, n in sizes.items() if name.startswith("megatron_cod/")) < 200


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
