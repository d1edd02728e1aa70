"""Files that come with the package: recipes, files of studies, launch scripts.

``recipes`` and ``templates`` are links to the repository's ``recipes/`` and ``examples/``; a wheel holds the files.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from megatron_cod.errors import UserError

HERE = Path(__file__).parent
RECIPES = HERE / "recipes"
STUDIES = RECIPES / "studies"
TEMPLATES = HERE / "templates"


def names_in(folder: Path) -> list[str]:
    """The names by which the YAML files of a folder are asked for."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.yaml")] if folder.is_dir() else []


def find(asked: str | Path, folder: Path = RECIPES, what: str = "recipe", listed: str = "recipes list") -> Path:
    """The file of a recipe that is given by its path, or by the name of one of the package's.

    folder, what, listed: where those are, what they are, and which command lists them.

    Raises:
        UserError: when there is neither, with the nearest name.
    """
    path, shipped = Path(asked), names_in(folder)
    if path.exists() and not (path.is_dir() and str(asked) in shipped):
        return path
    if str(asked) in shipped:
        return folder / f"{asked}.yaml"
    if path.stem in shipped:
        hint = f"the package has it: give {path.stem} instead of a path"
    else:
        beside = [str(path.with_name(name)) for name in get_close_matches(path.name, _files_in(path.parent), n=1)]
        near = beside or get_close_matches(path.stem, shipped, n=1)
        known = f"did you mean {near[0]}?" if near else f"the package has {', '.join(shipped)}"
        hint = f"{known} (megatron-cod {listed})"
    raise UserError(f"{what} {asked} does not exist; {hint}")
