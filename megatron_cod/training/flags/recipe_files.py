"""Recipe files as they are on disk. Imports neither torch nor Megatron: a command reads them before it starts either."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from megatron_cod.errors import UserError
from megatron_cod.shipped import find


def load_recipe(path: str | Path) -> dict[str, Any]:
    """Read a recipe, by its path or its name in the package: argument names (``num-layers`` or ``num_layers``) to values.

    ``base: other.yaml`` builds on a recipe in the same folder, whose keys this one overrules. Raises UserError for a
    missing file, broken YAML, anything but a flat mapping, or bases that go in a circle.
    """
    return _load(find(path), ())


def _load(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path in above:
        raise UserError(f"recipe {path} builds on itself: {' -> '.join(p.name for p in (*above, path))}")
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        near = sorted(other.name for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"recipe {path} does not exist; there are {', '.join(near) or 'no recipes there'}") from None
    except (OSError, yaml.YAMLError, ValueError) as error:  # ValueError: what is no text, no path, or no date
        raise UserError(f"recipe {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise UserError(f"recipe {path} must hold 'argument-name: value' lines")
    recipe = {str(key).replace("_", "-"): value for key, value in content.items()}
    base = recipe.pop("base", None)
    return recipe if base is None else {**_load(path.parent / str(base), (*above, path)), **recipe}
