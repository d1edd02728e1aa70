"""The corpus of packages: its readers on small packages made here; the network is not used."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_cod.data.corpus import make, prose
from megatron_cod.data.corpus.fetch import NotToBeHad, fetch
from megatron_cod.data.corpus.html import paragraphs_of
from megatron_cod.data.corpus.sources import SOURCES, Source


def test_prose_of_a_page() -> None:
    page = """<head><title>no</title></head><nav><p>no</p></nav><h1>A title&para;</h1>
    <p>One &lt;tag&gt; and<br>a <b>word</b>.</p><pre>no listing</pre><ul><li>first</li><li>second</li></ul>
    <table><tr><td><p>no</p></table>outside<p>last"""
    assert paragraphs_of(page) == ["A title", "One <tag> and a word.", "first", "second", "last"]


def test_repeated_parts_of_pages_are_removed(tmp_path: Path) -> None:
    long = "A sentence that is long enough to make a page of it. " * 5
    (tmp_path / "a.html").write_text(f"<p>{long}<p>Copyright.")
    (tmp_path / "b.html").write_text(f"<p>Copyright.<p>Another one: {long}")
    (tmp_path / "c.html").write_text("<p>a stub")
    (tmp_path / "genindex.html").write_text(f"<p>An index: {long}")
    found = list(prose.pages(tmp_path, "*.html", "genindex"))
    assert found == [f"{long.strip()}\n\nCopyright.", f"Another one: {long.strip()}"]


def test_reads_dictionary_entries(tmp_path: Path) -> None:
    for part in ("noun", "verb", "adj", "adv"):
        head = "  1 This software\n"
        entry = '00001740 03 n 02 abstract_entity 0 thing 1 000 | what is not a thing; "an idea"  \n'
        (tmp_path / f"data.{part}").write_text(head + entry)
    assert list(prose.wordnet(tmp_path)) == ['abstract entity, thing: what is not a thing; "an idea"'] * 4


def test_documentation_strings_come_once(tmp_path: Path) -> None:
    text = "Lists the things of an account."
    for service, texts in (("a", [f"<p>{text}</p>", "short"]), ("b", [text, "Makes a thing for an account."])):
        for version, content in (("2012", ["<p>An old version of the interface."]), ("2020", texts)):
            folder = tmp_path / "botocore" / "data" / service / version
            folder.mkdir(parents=True)
            model = {"operations": [{"documentation": each, "name": "documentation"} for each in content]}
            (folder / "service-2.json.gz").write_bytes(gzip.compress(json.dumps(model).encode()))
    assert list(prose.botocore(tmp_path)) == [text, "Makes a thing for an account."]


def test_sources_are_chosen_by_name() -> None:
    assert make.choose(None) == list(SOURCES)
    assert [source.name for source in make.choose(["austen", "sotu"])] == ["austen", "sotu"]
    with pytest.raises(ValueError, match="unknown source nothing; there are sotu"):
        make.choose(["nothing"])


def test_a_corpus_is_written_kept_and_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def fetch(manager: str, packages: tuple[str, ...], _: Path) -> Path:
        calls.append(packages[0])
        if packages[0] == "none":
            raise NotToBeHad("apt-get is not installed")
        return tmp_path

    monkeypatch.setattr(make, "fetch", fetch)
    good = Source("good", "pip", ("one",), "MIT", lambda _: iter(["caf\u00e9\r\n", " \n", "damage\x00 \ud800here"]))
    sources = [good, Source("bad", "apt", ("none",), "MIT", lambda _: iter([]))]
    sources.append(Source("empty", "pip", ("two",), "MIT", lambda _: iter([])))
    said: list[str] = []
    for _ in range(2):
        found = make.make_corpus(tmp_path / "corpus", sources, said.append, False)
        assert [(one.documents, one.bytes, one.missing is None) for one in found] == [
            (2, 6 + 11, True),
            (0, 0, False),
            (0, 0, False),
        ]
    assert calls == ["one", "none", "two", "none", "two"]
    lines = [json.loads(line) for line in (tmp_path / "corpus" / "good.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == ["caf\u00e9\n", "damage here"]
    assert {line["licence"] for line in lines} == {"MIT"}
    assert "warning: bad is skipped: apt-get is not installed" in said
    summary = json.loads((tmp_path / "corpus" / make.SUMMARY).read_text())
    assert [entry["name"] for entry in summary] == ["good", "bad", "empty"]
    assert sorted(path.name for path in (tmp_path / "corpus").iterdir()) == [make.SUMMARY, "good.jsonl"]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_a_debian_package_is_unpacked_below_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As examples/corpus_to_chat.py names it; the index of packages is replaced by a package made here."""
    tree, programs = tmp_path / "tree", tmp_path / "programs"
    (tree / "DEBIAN").mkdir(parents=True)
    programs.mkdir()
    control = "Package: prose\nVersion: 1\nArchitecture: all\nMaintainer: none\nDescription: text\n"
    (tree / "DEBIAN" / "control").write_text(control)
    (tree / "text.txt").write_text("prose")
    subprocess.run(["dpkg-deb", "--build", str(tree), str(tmp_path / "prose.deb")], check=True, capture_output=True)
    (programs / "apt-get").write_text(f'#!/bin/sh\ncp "{tmp_path}/prose.deb" .\n')
    (programs / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    found = fetch("apt", ["prose"], Path("here"))
    assert (tmp_path / found / "text.txt").read_text() == "prose"
    (programs / "apt-get").unlink()
    assert fetch("apt", ["prose"], Path("here")) == found  # kept for the next time
