"""The words that docs/glossary.md rules out are in no page, help text or name."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.pages import PAGES, prose

GLOSSARY = ROOT / "docs" / "glossary.md"
PHRASES = {
    "gone on with": r"(go|goes|gone|going) on(?! (a|the|disk)\b)",
    "all the same": r"all the same",
    "left out": r"left out|leaves? (\w+ ){0,2}out|leaving (\w+ ){0,2}out",
    "laid over": r"laid over|lays over",
    "held to": r"(is|are|be|being|were) held (to|against)",
    "told": r"told",
    "wishes": r"wishes",
    "what cannot be": r"what cannot be",
    "has the word": r"has the word",
    "way out": r"ways? out",
    "reckon": r"reckon\w*",
    "heal": r"heals?",
    "taken for": r"taken for",
}
"""Word of the glossary -> what is searched for in pages and help texts."""
NAMES = {
    "told",
    "tell",
    "tells",
    "say",
    "says",
    "said",
    "speak",
    "speaks",
    "wishes",
    "laid",
    "judge",
    "judged",
    "reckon",
}
"""Words that no function, class, argument or variable of the package and tools has in its name."""


def found_in(text: str) -> list[str]:
    return [match[0] for pattern in PHRASES.values() for match in re.finditer(rf"\b({pattern})\b", text, re.IGNORECASE)]


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for folder in ("megatron_cod", "tools", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text())


def help_texts(tree: ast.AST) -> Iterator[str]:
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        for keyword in call.keywords:
            if keyword.arg in ("help", "description", "epilog"):
                yield " ".join(
                    n.value for n in ast.walk(keyword.value) if isinstance(n, ast.Constant) and isinstance(n.value, str)
                )


def docstrings(tree: ast.AST) -> Iterator[str]:
    """Of modules, classes, functions, and of the names above them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


def names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def words_of(name: str) -> set[str]:
    return set(re.sub(r"([A-Z])", r"_\1", name).lower().split("_"))


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "glossary.md"], ids=lambda page: page.name)
def test_page_uses_words_of_glossary(page):
    assert found_in(prose(page.read_text())) == []


def test_help_uses_words_of_glossary():
    assert [(path.name, word) for path, tree in sources() for text in help_texts(tree) for word in found_in(text)] == []


def test_docstrings_use_words_of_glossary():
    assert [(path.name, word) for path, tree in sources() for text in docstrings(tree) for word in found_in(text)] == []


def test_names_use_words_of_glossary():
    assert [
        (str(path.relative_to(ROOT)), name)
        for path, tree in sources()
        for name in names(tree)
        if words_of(name) & NAMES
    ] == []


def test_glossary_lists_searched_words():
    listed = GLOSSARY.read_text().split("## Words not to use")[1]
    assert [word for word in PHRASES if word not in listed] == []


@pytest.mark.parametrize(
    "text", ["a run is gone on with", "it leaves the step out", "it loads all the same", "rank 0 is told"]
)
def test_finds_planted_words(text):
    assert found_in(text)


def test_finds_planted_names_and_help():
    tree = ast.parse("def tell_all(said): wishes = add('--x', help='what cannot ' 'be')")
    assert [name for name in names(tree) if words_of(name) & NAMES] == ["tell_all", "said", "wishes"]
    assert found_in(next(help_texts(tree))) == ["what cannot be"]
    assert [text for text in docstrings(ast.parse('x = 1\n"""Left out."""')) if found_in(text)]
