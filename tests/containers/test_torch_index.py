"""An index beside pip's own, named when Dockerfile.cpu is built, has the torch that is installed."""

import zipfile
from pathlib import Path

import pytest

from tests.containers.context import until
from tests.containers.images import installed

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1200)]


def index_with_torch(folder: Path, version: str) -> Path:
    """An index of one package, with one empty wheel."""
    page = folder / "torch"
    page.mkdir(parents=True)
    name, information = f"torch-{version}-py3-none-any.whl", f"torch-{version}.dist-info"
    with zipfile.ZipFile(page / name, "w") as wheel:
        wheel.writestr("torch/__init__.py", "")
        wheel.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")
    (page / "index.html").write_text(f'<a href="{name}">{name}</a>')
    return folder


def test_torch_comes_without_cuda_from_an_index_that_has_it_so(store, project, tmp_path):
    index = index_with_torch(tmp_path / "index", "2.15.0+cpu")
    file = until(project / "Dockerfile.cpu", "ARG MEGATRON_CORE", tmp_path / "file")
    given = ("-v", f"{index}:/index:ro", "--build-arg", "PIP_EXTRA_INDEX_URL=file:///index")
    store.build("localhost/without_cuda", project, file, *given)
    there = installed(store, "localhost/without_cuda")
    assert there["torch"] == "2.15.0+cpu"
    assert "triton" in there and not [name for name in there if name.startswith("nvidia")]
