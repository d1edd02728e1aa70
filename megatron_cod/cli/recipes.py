"""The recipes of the package: YAML files of argument names, for --recipe NAME.

    megatron-cod recipes list
    megatron-cod recipes show llama_1b
    megatron-cod recipes show llama_1b > mine.yaml      # change it, and give --recipe mine.yaml

Files of studies (megatron-cod study NAME) are listed too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_cod.cli.parsing import Parser
from megatron_cod.errors import run_tool
from megatron_cod.shipped import RECIPES, STUDIES, find, names_in


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show")
    actions.add_parser("list", help="names, and what each is for")
    show = actions.add_parser("show", help="print one, with what it builds on in comments")
    show.add_argument("name", metavar="NAME", help="of the package, or a path")
    return parser


def _summary(path: Path) -> str:
    """The first sentence of the comment at its head."""
    head = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").strip())
    return " ".join(head).split(". ")[0].rstrip(".")


def _list() -> None:
    for title, folder in (("recipes (--recipe NAME)", RECIPES), ("studies (megatron-cod study NAME)", STUDIES)):
        print(f"{title}:")
        for name in names_in(folder):
            print(f"  {name:17}{_summary(folder / f'{name}.yaml')}")


def _base_of(text: str) -> str | None:
    named = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("base:")]
    return named[0] if named else None


def _show(name: str) -> None:
    path = find(name, STUDIES, "study") if name in names_in(STUDIES) else find(name)
    text = path.read_text()
    print(text, end="")
    base = _base_of(text)
    while base is not None:
        text = (path.parent / base).read_text()
        print(f"\n# base {base}:")
        print("".join(f"# {line}\n" for line in text.splitlines()), end="")
        base = _base_of(text)


def main() -> None:
    args = build_parser().parse_args()
    if args.action == "list":
        _list()
    else:
        _show(args.name)


if __name__ == "__main__":
    run_tool(main)
