"""Both container files are built as they are, on stand-ins of their bases."""

import shutil
from pathlib import Path

import pytest

from tests.containers.conftest import PYTHON_BASE
from tests.containers.context import PLANTED, mutant
from tests.containers.images import installed, pinned

pytestmark = [pytest.mark.containers, pytest.mark.timeout(3600)]
IMAGES = ["cpu_image", "gpu_image"]


@pytest.mark.parametrize("image", IMAGES)
def test_the_user_is_not_root_and_the_training_starts(store, image, request):
    image = request.getfixturevalue(image)
    assert store.run("inspect", "--type", "image", "--format", "{{.OCIv1.Config.User}}", image).strip() == "10001"
    assert store.inside(image, "id", "-u").strip() == "10001"
    assert "--norm-scheme NAME" in store.inside(image, "python", "-m", "megatron_cod.training.pretrain", "--help")
    assert store.inside(image, "sh", "-c", "touch runs/mine && ls runs").strip() == "mine"
    store.inside(image, "sh", "-c", "! touch megatron_cod/mine 2>/dev/null && touch ~/mine")


def test_installs_pinned_versions(store, cpu_image, project):
    there = installed(store, cpu_image)
    assert pinned(project).items() <= there.items()
    text = (project / "Dockerfile.cpu").read_text()
    for name in ("torch", "triton", "megatron-core"):
        assert f"\nARG {name.upper().replace('-', '_')}={there[name]}\n" in text


def changed(project: Path, folder: Path) -> Path:
    """The project with another line in its code."""
    shutil.copytree(project, folder)
    with (folder / "megatron_cod" / "__init__.py").open("a") as file:
        file.write("# another line\n")
    return folder


def layers_kept(store, file: Path, project: Path, later: Path, *options: str) -> int:
    """How many layers are not built again when the code changes; all but the last layer of the code may be."""
    store.build("localhost/before", project, file, *options)
    store.build("localhost/after", later, file, *options)
    before, after = store.layers("localhost/before"), store.layers("localhost/after")
    assert len(before) == len(after)
    return len(before) - sum(one != other for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile"])
def test_only_the_code_is_built_again_when_the_code_changes(store, cpu_image, gpu_image, project, tmp_path, name):
    later = changed(project, tmp_path / "later")
    said = store.build("localhost/after", later, later / name)
    assert "Collecting" not in said and said.count("Using cache") >= 6
    whole = len(store.layers("localhost/after"))
    assert layers_kept(store, project / name, project, later) == whole - 1


def test_detects_code_before_dependencies(store, dependencies, project, tmp_path):
    later = changed(project, tmp_path / "later")
    wrong = mutant(
        project / "Dockerfile.cpu", "ARG PIP_INDEX_URL", "COPY megatron_cod megatron_cod", tmp_path / "wrong"
    )
    kept = layers_kept(store, wrong, project, later, "--build-arg", f"BASE={dependencies}")
    assert kept < len(store.layers("localhost/after")) - 1


def test_build_context_is_minimal(store, project, tmp_path):
    """.dockerignore, seen by a file that copies all it is given; with another one the planted files come through."""
    (tmp_path / "all").write_text(f"FROM {PYTHON_BASE}\nCOPY . /given\n")
    (tmp_path / "wrong").write_text("docs\n")

    def given(*options: str) -> set[str]:
        store.build("localhost/all", project, tmp_path / "all", *options)
        with store.mounted("localhost/all") as root:
            return {str(path.relative_to(root / "given")) for path in (root / "given").rglob("*") if path.is_file()}

    names = given()
    assert not names & set(PLANTED)
    assert {name.split("/")[0] for name in names} == {
        *("megatron_cod", "recipes", "examples", "tools", "requirements.docker.txt", "LICENSE"),
    }
    assert set(PLANTED) <= given("--ignorefile", str(tmp_path / "wrong"))


@pytest.mark.parametrize("image", IMAGES)
def test_the_images_hold_the_project_once(store, project, image, request):
    image = request.getfixturevalue(image)
    where = store.inside(image, "python3", "-c", "import megatron_cod; print(megatron_cod.__file__)")
    assert where.strip() == "/workspace/megatron_cod/__init__.py"
    with store.mounted(image) as root:
        assert len(list(root.glob("**/megatron_cod/layer_specs.py"))) == 1
        assert not (root / "etc/pip.conf").exists() or (root / "etc/pip.conf").stat().st_size == 0
