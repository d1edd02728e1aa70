"""Readers: an unpacked package -> its documents."""

from __future__ import annotations

import gzip
import json
import re
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import batched
from pathlib import Path

from megatron_cod.data.corpus.fetch import NotToBeHad
from megatron_cod.data.corpus.html import paragraphs_of

Reader = Callable[[Path], Iterator[str]]

_CHAPTERS = "gen1:1-rev22:21"
# An API reference is cut into documents of so many paragraphs, a dictionary into documents of so many entries.
_PARAGRAPHS = 60
_ENTRIES = 40


def text_files(folder: Path, pattern: str) -> Iterator[str]:
    """Each file as it is."""
    for path in sorted(folder.glob(pattern)):
        yield path.read_text(encoding="utf-8").strip()


def pages(folder: Path, pattern: str, without: str = r"^$") -> Iterator[str]:
    """One document an HTML page; a paragraph that an earlier page had is omitted, and so are stubs of pages."""
    seen: set[str] = set()
    for path in sorted(folder.glob(pattern)):
        if re.search(without, str(path.relative_to(folder))) or path.is_symlink():
            continue
        document = "\n\n".join(_new(paragraphs_of(path.read_text(encoding="utf-8", errors="replace")), seen))
        if len(document) > 200 and "\ufffd" not in document:
            yield document


def _new(paragraphs: Iterable[str], seen: set[str]) -> Iterator[str]:
    for paragraph in paragraphs:
        if paragraph not in seen:
            seen.add(paragraph)
            yield paragraph


def bible(folder: Path) -> Iterator[str]:
    """One document a chapter, by the program that comes with the text."""
    program = folder / "usr" / "bin" / "bible"
    try:
        command = [str(program), "-p", str(folder / "usr" / "lib"), _CHAPTERS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise NotToBeHad(f"the package's own program cannot be run: {error}") from None
    for chapter in re.split(r"\n(?=\S[^\n]* \d+\n\n)", done.stdout.strip("\n")):
        title, _, verses = chapter.partition("\n")
        lines = re.split(r"\n(?=  \d+ )", verses.strip("\n"))
        yield "\n".join([title, "", *(" ".join(line.split()) for line in lines)])


def novels(folder: Path) -> Iterator[str]:
    """One document a chapter of the novels in an R package: vectors of lines, each vector a zlib stream."""
    data = next(folder.glob("usr/lib/R/site-library/*/data/Rdata.rdb")).read_bytes()
    while data:
        stream = zlib.decompressobj()
        lines = _strings(stream.decompress(data[4:]))
        data = stream.unused_data
        for chapter in re.split(r"\n(?=(?:CHAPTER|Chapter) [\dIVXLC]+\b)", "\n".join(lines)):
            yield re.sub(r"\n{3,}", "\n\n", chapter).strip()


def _strings(content: bytes) -> Iterator[str]:
    """The elements of a serialised character vector of R: flags, length, bytes each, after one header."""
    place = content.index(b"\x00\x00\x00\x10") + 4
    (count,) = struct.unpack_from(">i", content, place)
    place += 4
    for _ in range(count):
        (length,) = struct.unpack_from(">i", content, place + 4)
        yield content[place + 8 : place + 8 + length].decode("utf-8")
        place += 8 + length


def wordnet(folder: Path) -> Iterator[str]:
    """Dictionary entries, the words and the text after the bar, in the order of the files."""
    for part in ("noun", "verb", "adj", "adv"):
        path = next(folder.glob(f"**/data.{part}"))
        entries = []
        for line in path.read_text(encoding="utf-8").splitlines():
            fields, bar, gloss = line.partition(" | ")
            words = fields.split()
            if bar and not line.startswith(" "):
                names = words[4 : 4 + 2 * int(words[3], 16) : 2]
                entries.append(f"{', '.join(names).replace('_', ' ')}: {gloss.strip()}")
        yield from ("\n".join(group) for group in batched(entries, _ENTRIES))


def botocore(folder: Path) -> Iterator[str]:
    """The documentation strings of each service's newest API, without tags and repetitions."""
    seen: set[str] = set()
    for service in sorted((folder / "botocore" / "data").iterdir()):
        models = sorted(service.glob("*/service-2.json.gz"))
        if models:
            found = _values(json.loads(gzip.decompress(models[-1].read_bytes())), "documentation")
            texts = (" ".join(paragraphs_of(f"<p>{text}")) for text in found)
            yield from _in_documents(texts, seen)


def google_apis(folder: Path) -> Iterator[str]:
    """The descriptions in each API's discovery document, without repetitions."""
    seen: set[str] = set()
    for path in sorted(folder.glob("googleapiclient/discovery_cache/documents/*.json")):
        found = _values(json.loads(path.read_text(encoding="utf-8")), "description")
        yield from _in_documents((" ".join(text.split()) for text in found), seen)


def _values(tree: object, key: str) -> Iterator[str]:
    """Strings under ``key`` anywhere in a JSON value, in order."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key and isinstance(value, str):
                yield value
            else:
                yield from _values(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from _values(value, key)


def _in_documents(paragraphs: Iterable[str], seen: set[str]) -> Iterator[str]:
    kept = (paragraph for paragraph in _new(paragraphs, seen) if len(paragraph) > 20)
    for group in batched(kept, _PARAGRAPHS):
        yield "\n".join(group)


def files_like(pattern: str) -> Reader:
    return partial(text_files, pattern=pattern)


def pages_like(pattern: str, without: str = r"^$") -> Reader:
    return partial(pages, pattern=pattern, without=without)
