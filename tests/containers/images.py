"""What the container files install."""

import re
from pathlib import Path


def pinned(project: Path) -> dict[str, str]:
    lines = (project / "requirements.docker.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def installed(store, image: str) -> dict[str, str]:
    listed = store.inside(image, "python3", "-m", "pip", "list", "--format=freeze")
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", listed, re.M))
