"""The GPU file on a base that brings torch and holds fast what it brought, as NVIDIA's images do: the mechanics."""

import pytest

from tests.containers.conftest import PYTHON_BASE
from tests.containers.context import mutant
from tests.containers.images import installed, pinned

pytestmark = [pytest.mark.containers, pytest.mark.timeout(3600)]


def torch_files(store, image: str) -> dict[str, tuple[int, float]]:
    """Size and time of each file of torch, triton and the libraries beside them."""
    with store.mounted(image) as root:
        packages = next(root.glob("usr/local/lib/python3.*/site-packages"))
        found = [path for name in ("torch*", "triton*", "nvidia*") for path in packages.glob(f"{name}/**/*")]
        return {
            str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime)
            for path in found
            if path.is_file() and "__pycache__" not in path.parts
        }


def test_what_the_base_brings_is_left_alone(store, gpu_image, ngc_base, project):
    before, after, pins = installed(store, ngc_base), installed(store, gpu_image), pinned(project)
    assert before.items() <= after.items()
    assert before["rich"] != pins["rich"]
    assert after["psutil"] == "7.1.3" != pins["psutil"]  # not there before, held fast anyway
    lacked = {name: version for name, version in pins.items() if name not in before and name != "psutil"}
    assert len(lacked) > 5 and lacked.items() <= after.items()


def test_torch_is_the_bases_own_to_the_last_file(store, gpu_image, ngc_base, tmp_path):
    brought = torch_files(store, ngc_base)
    assert len(brought) > 5000
    assert torch_files(store, gpu_image) == brought
    assert store.layers(gpu_image)[: len(store.layers(ngc_base))] == store.layers(ngc_base)
    touch = "RUN touch /usr/local/lib/python3.*/site-packages/torch/version.py"
    (tmp_path / "touched").write_text(f"FROM {gpu_image}\nUSER root\n{touch}\n")
    store.build("localhost/touched", tmp_path, tmp_path / "touched")
    assert torch_files(store, "localhost/touched") != brought


def test_pins_alone_cannot_be_installed_on_such_a_base(store, ngc_base, project, tmp_path):
    """Why the file asks what the base holds: its constraints and other pins exclude each other."""
    selected = "--constraint /tmp/pins.txt --requirement /tmp/names.txt"
    wrong = mutant(project / "Dockerfile", selected, "--requirement requirements.docker.txt", tmp_path / "wrong")
    said = store.build("localhost/wrong", project, wrong, succeed=False)
    assert "The user requested (constraint)" in said


def test_a_base_without_torch_is_refused_in_one_line(store, project):
    given = ("--build-arg", f"BASE={PYTHON_BASE}")
    said = store.build("localhost/wrong", project, project / "Dockerfile", *given, succeed=False)
    assert "the base image brings no torch" in said
    assert "Collecting" not in said
