"""Promises of the house that a test can keep."""

import statistics
import subprocess

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
