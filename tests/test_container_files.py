"""The container files, and the commands that use them: linted, pinned, in step with the project, naming what is there."""

import itertools
import re
import shlex
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.commands import tool
from tests.conftest import ROOT

DOCKERFILES = ["Dockerfile", "Dockerfile.cpu"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name):
    done = subprocess.run([tool("hadolint"), str(ROOT / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_are_pinned_and_not_root(name):
    text = (ROOT / name).read_text()
    base = re.search(r"^ARG BASE=(\S+)$", text, re.M)[1]
    assert re.search(r":[\w.-]*\d", base), base
    assert text.rstrip().splitlines()[-2] == "USER 10001"
    assert text.index("requirements.docker.txt") < text.index("COPY megatron_cod")  # cached while the code changes
    pinned = [line for line in (ROOT / "requirements.docker.txt").read_text().splitlines() if not line.startswith("#")]
    assert pinned and all(re.fullmatch(r"[\w-]+==[\w.]+", line, re.I) for line in pinned)


def out_of_step(project: str, requirements: str, *files: str) -> list[str]:
    """What pyproject.toml, requirements.docker.txt and the ARGs of the container files say differently."""
    of_project = tomllib.loads(project)["project"]
    extras = of_project["optional-dependencies"]
    listed = [
        *of_project["dependencies"],
        *(line for name in ("data", "train", "hf", "analysis") for line in extras[name]),
    ]
    needed = {one.name: one for one in map(Requirement, listed) if one.name != of_project["name"]}
    lines = [line for line in requirements.splitlines() if not line.startswith("#")]
    pins = {name.lower(): version for name, version in (line.split("==") for line in lines)}
    own = {"torch", "triton", "megatron-core"}  # the container files' ARGs
    found = [f"{name} is pinned, and not needed" for name in pins.keys() - (needed.keys() - own)]
    found += [f"{name} is not pinned" for name in needed.keys() - own - pins.keys()]
    for text in files:
        arguments = {
            name.lower().replace("_", "-"): value for name, value in re.findall(r"^ARG (\w+)=(\S+)$", text, re.M)
        }
        given = {name: version for name, version in {**arguments, **pins}.items() if name in needed}
        wrong = [name for name, version in given.items() if not needed[name].specifier.contains(version)]
        found += [f"{name} {given[name]} is not {needed[name].specifier}" for name in wrong]
    versions = {tuple(re.findall(r"^ARG MEGATRON_CORE=(\S+)$", text, re.M)) for text in files}
    return found if len(versions) == 1 else [*found, f"megatron-core is {versions}"]


def test_the_images_requirements_are_in_step_with_the_projects():
    project, requirements = (ROOT / "pyproject.toml").read_text(), (ROOT / "requirements.docker.txt").read_text()
    files = [(ROOT / name).read_text() for name in DOCKERFILES]
    assert not out_of_step(project, requirements, *files)
    assert out_of_step(project.replace('"rich",', '"rich", "tqdm",', 1), requirements, *files) == ["tqdm is not pinned"]
    assert out_of_step(project.replace('"rich",', ""), requirements, *files) == ["rich is pinned, and not needed"]
    (said,) = out_of_step(project.replace('"rich",', '"rich<2",'), requirements, files[0])
    assert re.fullmatch(r"rich [\d.]+ is not <2", said)
    older = re.sub(r"MEGATRON_CORE=\S+", "MEGATRON_CORE=0.1", files[0])
    assert [one.split()[0] for one in out_of_step(project, requirements, older, files[1])] == ["megatron-core"] * 2


def commands_of(text: str) -> list[list[str]]:
    """The indented commands of a page that concern containers, in words; continued and joined lines taken apart."""
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.startswith("    ")]
    parts = [part for line in lines for part in line.split(" #")[0].split(" && ")]
    return [shlex.split(part) for part in parts if re.search(r"\b(docker|buildah|enroot|pretrain_container)\b", part)]


def wrong_in(commands: list[list[str]]) -> list[str]:
    """Files that commands name and the project has not; images that are run and were not built."""
    found, built = [], {"megatron_cod"}
    for words in commands:
        if {"build", "bud"} & set(words):
            after = dict(itertools.pairwise(words))
            file = after.get("-f", "Dockerfile")
            found += [] if (ROOT / file).is_file() else [f"no {file}"]
            built.add(after.get("-t", ""))
        named = [word for word in words if re.match(r"(examples|tools|recipes)/|IMAGE=", word)]
        for word in named:
            image = word.removeprefix("IMAGE=")
            if word != image:
                found += [] if image in built or image.endswith(".sqsh") else [f"no image {image}"]
            elif not (ROOT / word).exists():
                found.append(f"no {word}")
        images = [word for word in words if re.fullmatch(r"megatron_cod(:\w+)?", word)]
        found += [f"no image {image}" for image in images if image not in built]
    return found


@pytest.mark.parametrize("page", ["README.md", "docs/containers.md", *DOCKERFILES, "examples/docker/run.sh"])
def test_container_commands_name_existing_files(page):
    """The comments of files are read as pages: their commands stand after '#   '."""
    text = re.sub(r"^#   (?=\S)", "    ", (ROOT / page).read_text(), flags=re.M)
    assert not wrong_in(commands_of(text))


def test_detects_wrong_container_commands():
    page = "    docker build -t a:b -f Dockerfile.gpu . && IMAGE=a:c GPUS= examples/docker/go.sh  # no\n"
    assert wrong_in(commands_of(page)) == ["no Dockerfile.gpu", "no image a:c", "no examples/docker/go.sh"]
    assert wrong_in(commands_of("    docker run --rm megatron_cod:cpu\n")) == ["no image megatron_cod:cpu"]
    assert len(commands_of((ROOT / "docs" / "containers.md").read_text())) > 5
