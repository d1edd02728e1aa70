"""The API of the package: cheap to import, typed, and as docs/api.md says."""

import ast
import re
import subprocess
import sys

import pytest

import megatron_cod
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "api.md").read_text()
ASKED = {
    *("depth_factor", "Scheme", "SCHEMES", "register_scheme", "plan_pipeline", "check_depth_map", "export_model"),
    *("import_model", "load_as_transformers", "preprocess", "read_metrics", "__version__"),
}


def documented() -> set[str]:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    return {re.match(r" `(\w+)", row)[1] for row in rows}


def typed() -> set[str]:
    tree = ast.parse((ROOT / "megatron_cod" / "__init__.pyi").read_text())
    imported = {alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    plain = {node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)}
    return imported | plain - {"__all__", "_MODULE_OF"}


def test_page_stub_and_package_have_the_same_names():
    assert documented() == set(megatron_cod.__all__) == typed() >= ASKED


def test_the_stub_imports_from_where_the_package_does():
    tree = ast.parse((ROOT / "megatron_cod" / "__init__.pyi").read_text())
    of_stub = {
        alias.asname: node.module for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert of_stub == megatron_cod._MODULE_OF


@pytest.mark.parametrize("name", megatron_cod.__all__)
def test_each_name_is_there(name):
    found = getattr(megatron_cod, name)
    assert getattr(found, "__name__", name) == name
    assert name in dir(megatron_cod)


def test_no_name_hides_a_module():
    assert not [name for name in megatron_cod.__all__ if (ROOT / "megatron_cod" / name).exists()]
    assert not [name for name in megatron_cod.__all__ if (ROOT / "megatron_cod" / f"{name}.py").exists()]


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'depth_facto'"):
        getattr(megatron_cod, "depth_facto")  # noqa: B009


def test_importing_takes_no_torch():
    code = "import sys, megatron_cod; megatron_cod.read_metrics; print([m for m in ('torch',) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_of_the_page_run(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[number], "api.md", "exec"), {"__name__": "example"})
    expected = ("3 1 (22, 23, 24) [0.213, 0.209, 0.204]", "", "notes_text_document 2 documents, 27 tokens")[number]
    assert expected in capsys.readouterr().out
