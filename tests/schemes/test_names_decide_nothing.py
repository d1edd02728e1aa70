"""Code outside ``schemes/`` asks a scheme's row, and never its name: else a scheme of a user's own is treated otherwise."""

import ast

import pytest

from megatron_cod.schemes.table import SCHEMES
from tests.conftest import ROOT

PACKAGE = ROOT / "megatron_cod"
ARMS = {
    "benchmark/hf.py": "its contestants",
    "benchmark/schemes.py": "its contestants",
    "cli/benchmark_table.py": "its contestants",
    "cli/benchmark.py": "the default arms",
    "cli/quickstart_runs.py": "the arms of the quick start",
    "layer_specs.py": "the specs of stock Megatron-LM, one a scheme",
}
"""Files that choose schemes to run, which is not to decide by a name."""


def names_in(source: str) -> list[str]:
    """Scheme names among the strings of the code, ``__all__`` and docstrings apart."""
    return [
        node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant) and node.value in SCHEMES
    ]


def test_no_module_has_the_name_of_a_scheme():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith("schemes/") and (names := names_in(path.read_text())):
            found[name] = names
    assert set(found) == set(ARMS), {name: names for name, names in found.items() if name not in ARMS}


@pytest.mark.parametrize(
    "source", ['if scheme == "lns": pass', 'LOST = {"mix_ln": 1}', 'match scheme:\n    case "deepnorm": pass']
)
def test_finds_a_decision_by_name(source):
    assert names_in(source)
