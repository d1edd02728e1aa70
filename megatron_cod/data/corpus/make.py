"""Write the corpus: one JSON-lines file a source, and a table of what it is."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_cod.common.files import replacing
from megatron_cod.data.corpus.fetch import NotToBeHad, fetch
from megatron_cod.data.corpus.sources import SOURCES, Source
from megatron_cod.errors import UserError, bad_input

SUMMARY = "SOURCES.json"
_MEGABYTE = 10**6


@dataclass(frozen=True)
class Made:
    """One source. ``bytes`` is of the text in UTF-8; ``missing``: why there is none, else None."""

    name: str
    packages: str
    licence: str
    documents: int = 0
    bytes: int = 0
    missing: str | None = None


def choose(names: Iterable[str] | None) -> list[Source]:
    """The sources of these names, all without any; raises UserError for an unknown one."""
    by_name = {source.name: source for source in SOURCES}
    unknown = set(names or ()) - set(by_name)
    if unknown:
        raise UserError(f"unknown source {', '.join(sorted(unknown))}; there are {', '.join(by_name)}")
    return [by_name[name] for name in names or by_name]


def make_corpus(folder: Path, sources: Iterable[Source], log: Callable[[str], None], keep_packages: bool) -> list[Made]:
    """Write ``folder``/NAME.jsonl for each source and SUMMARY; a file that is there already stays.

    Each line is {"text", "source", "licence"}. A source that cannot be had is named and omitted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path_of_summary = folder / SUMMARY
    with bad_input(path_of_summary):
        known = json.loads(path_of_summary.read_text(encoding="utf-8")) if path_of_summary.exists() else []
        summary = {entry["name"]: entry for entry in known}
    made = []
    for source in sources:
        start = time.monotonic()
        path = folder / f"{source.name}.jsonl"
        kept = path.exists()
        try:
            if not kept:
                _write(path, source, _documents(source, folder / "packages"))
            one = _counted(path, source)
            how = "kept" if kept else f"{time.monotonic() - start:.0f} s"
            log(f"{source.name:15} {one.documents:>7,} documents {one.bytes / _MEGABYTE:>6.1f} MB  {how}")
        except NotToBeHad as error:
            one = Made(source.name, " ".join(source.packages), source.licence, missing=str(error))
            log(f"warning: {source.name} is skipped: {error}")
        made.append(one)
        summary[one.name] = asdict(one)
        path_of_summary.write_text(json.dumps(list(summary.values()), indent=2) + "\n", encoding="utf-8")
    if not keep_packages:
        shutil.rmtree(folder / "packages", ignore_errors=True)
    return made


def _documents(source: Source, packages: Path) -> Iterator[str]:
    unpacked = fetch(source.manager, source.packages, packages)
    for text in source.read(unpacked):
        # Half of a surrogate pair, control characters and NUL are damage in any text.
        text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", "", text.replace("\r\n", "\n"))
        if text.strip():
            yield text


def _write(path: Path, source: Source, documents: Iterator[str]) -> None:
    with replacing(path) as part:
        with part.open("w", encoding="utf-8") as file:
            for text in documents:
                record = {"text": text, "source": source.name, "licence": source.licence}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        if not part.stat().st_size:
            raise NotToBeHad(f"no text was found in {', '.join(source.packages)}: another version of the package?")


def _counted(path: Path, source: Source) -> Made:
    documents = size = 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            documents += 1
            size += len(json.loads(line)["text"].encode("utf-8"))
    return Made(source.name, " ".join(source.packages), source.licence, documents, size)
