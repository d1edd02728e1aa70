"""The images, each built once for all tests. MEGATRON_COD_CONTAINERS=DIR keeps what was built there for the next time."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.containers import buildah, docker, standin
from tests.containers.buildah import Buildah
from tests.containers.context import copy_of_the_project, until

CPU, GPU = "megatron_cod:cpu", "megatron_cod:latest"
PYTHON_BASE = "python:3.12-slim-bookworm"
NGC_BASE = "nvcr.io/nvidia/pytorch:25.10-py3"
NEEDED_BYTES = 40e9
# As NVIDIA's images since 25.03: torch of its own version, and a file that holds fast what was there when it was made.
NGC_STAND_IN = """
FROM localhost/torch
RUN python3 -m pip install --quiet rich==14.2.0 \
    && cd /usr/local/lib/python3.*/site-packages && mv torch-*.dist-info torch-2.15.0a0+stand.in.dist-info \
    && sed -i 's/^Version: .*/Version: 2.15.0a0+stand.in/' torch-*.dist-info/METADATA \
    && mkdir /etc/pip && python3 -m pip freeze --all > /etc/pip/constraint.txt \
    && printf '\\n# not installed here\\npsutil==7.1.3\\n' >> /etc/pip/constraint.txt
ENV PIP_CONSTRAINT=/etc/pip/constraint.txt
"""


def log(text: str) -> None:
    """What was measured, for `pytest -s`."""
    print(f"\n[containers] {text}", flush=True)


@pytest.fixture(scope="session")
def folder():
    """Where all of it lies; gone afterwards unless it was named."""
    reason = standin.missing() or buildah.missing()
    named = os.environ.get("MEGATRON_COD_CONTAINERS")
    if not reason and not named and shutil.disk_usage(tempfile.gettempdir()).free < NEEDED_BYTES:
        reason = f"needs {NEEDED_BYTES / 1e9:.0f} GB of disk in {tempfile.gettempdir()}"
    if reason:
        pytest.skip(reason)
    made = Path(named or tempfile.mkdtemp(prefix="containers"))
    made.mkdir(parents=True, exist_ok=True)
    made.chmod(0o755)
    yield made
    if not named:
        subprocess.run(("umount", "--recursive", made / "buildah" / "store" / "overlay"), capture_output=True)
        shutil.rmtree(made)


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """The project as a build context."""
    return copy_of_the_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def store(folder) -> Buildah:
    """buildah, with a stand-in under the name of Dockerfile.cpu's base."""
    store = Buildah(folder / "buildah")
    if PYTHON_BASE not in store.run("images", "--format", "{{.Name}}:{{.Tag}}").replace("localhost/", "").split():
        begun = time.monotonic()
        base = folder / "base"
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir()
        standin.make_root(base)
        (base / "Dockerfile").write_text('FROM scratch\nADD root /\nCMD ["python3"]\n')
        store.build(PYTHON_BASE, base, base / "Dockerfile")
        shutil.rmtree(base)
        log(f"stand-in for {PYTHON_BASE} made in {time.monotonic() - begun:.0f} s")
    return store


@pytest.fixture(scope="session")
def cpu_image(store, project) -> str:
    """Dockerfile.cpu, built as it is."""
    begun = time.monotonic()
    store.build(CPU, project, project / "Dockerfile.cpu")
    size = store.run("images", "--format", "{{.Size}}", CPU).strip()
    log(f"Dockerfile.cpu built in {time.monotonic() - begun:.0f} s: {size}")
    return CPU


@pytest.fixture(scope="session")
def dependencies(store, cpu_image, project, tmp_path_factory) -> str:
    """Dockerfile.cpu without the project: a base on which both files find all they need."""
    file = until(project / "Dockerfile.cpu", "# Not root", tmp_path_factory.mktemp("files") / "Dockerfile")
    store.build("localhost/dependencies", project, file)
    return "localhost/dependencies"


@pytest.fixture(scope="session")
def ngc_base(store, cpu_image, project, tmp_path_factory) -> str:
    """A stand-in under the name of the GPU file's base: torch that is NVIDIA's by its version, and their constraints."""
    files = tmp_path_factory.mktemp("files")
    store.build("localhost/torch", project, until(project / "Dockerfile.cpu", "ARG MEGATRON_CORE", files / "torch"))
    (files / "ngc").write_text(NGC_STAND_IN)
    store.build(NGC_BASE, files, files / "ngc")
    return NGC_BASE


@pytest.fixture(scope="session")
def gpu_image(store, ngc_base, project) -> str:
    """Dockerfile, built as it is on that stand-in."""
    begun = time.monotonic()
    store.build(GPU, project, project / "Dockerfile")
    size = store.run("images", "--format", "{{.Size}}", GPU).strip()
    log(f"Dockerfile built on a stand-in in {time.monotonic() - begun:.0f} s: {size}")
    return GPU


@pytest.fixture(scope="session")
def daemon(folder, store, cpu_image):
    """A Docker daemon that holds the image of Dockerfile.cpu."""
    reason = docker.missing()
    if reason:
        pytest.skip(reason)
    with docker.Daemon(folder / "docker") as running:
        begun = time.monotonic()
        running.load(store, cpu_image, folder)
        log(f"the image handed to Docker in {time.monotonic() - begun:.0f} s")
        yield running


@pytest.fixture
def outside(folder):
    """A directory and the user it belongs to, who has no account in the images and is not root."""
    user = 12345
    made = Path(tempfile.mkdtemp(prefix="outside", dir=folder))
    os.chown(made, user, user)
    (made / "run.sh").write_bytes((ROOT / "examples" / "docker" / "run.sh").read_bytes())
    (made / "run.sh").chmod(0o755)
    yield made, user
    shutil.rmtree(made)
