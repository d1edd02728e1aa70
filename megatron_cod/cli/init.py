"""Copy the launch scripts into a folder: one machine, several, Slurm, Docker, and the check of the machines.

    megatron-cod init job
    cd job && examples/single_node.sh --pipeline-model-parallel-size 2

Each script names five things to change at its top; RECIPE takes a name of `megatron-cod recipes list` or a path. Start them
from the folder. Files that are there and differ are kept, unless --overwrite.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from megatron_cod.cli.parsing import Parser
from megatron_cod.errors import UserError, run_tool
from megatron_cod.shipped import TEMPLATES

FOLDER = "examples"
"""The scripts name each other by it."""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help=f"the scripts go to DIR/{FOLDER}")
    parser.add_argument("--overwrite", action="store_true", help="replace scripts that were changed")
    return parser


def templates() -> list[Path]:
    """The scripts, relative to their folder."""
    found = [path for pattern in ("*.sh", "*/*.sh", "*/*.sbatch") for path in TEMPLATES.glob(pattern)]
    return sorted(path.relative_to(TEMPLATES) for path in found)


def copy_templates(folder: Path, overwrite: bool) -> list[Path]:
    """Copy them, executable where the originals are; what was written. UserError for one that was changed."""
    wanted = {folder / FOLDER / name: TEMPLATES / name for name in templates()}
    changed = [path for path, source in wanted.items() if path.exists() and path.read_bytes() != source.read_bytes()]
    if changed and not overwrite:
        raise UserError(f"{changed[0]} is there already and differs; --overwrite replaces it")
    for path, source in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
        path.chmod(0o755 if source.read_bytes().startswith(b"#!") else 0o644)  # a wheel may lose the mode
    return list(wanted)


def main() -> None:
    args = build_parser().parse_args()
    for path in copy_templates(args.folder, args.overwrite):
        print(path)
    print(f"start with: cd {args.folder} && {FOLDER}/single_node.sh")


if __name__ == "__main__":
    run_tool(main)
