"""Images built by buildah without a daemon and without a registry; RUN reaches the machine's network and pip's settings."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# How pip on this machine finds its index: given to the builds as mounts, so that no image keeps it.
_SETTINGS = (Path("/etc/pip.conf"), Path.home() / ".config/pip/pip.conf", Path.home() / ".pip/pip.conf")
_CERTIFICATES = Path("/etc/ssl/certs")


def missing() -> str | None:
    """Why nothing can be built here; None when it can."""
    if shutil.which("buildah") is None:
        return "not installed: buildah (Debian: apt install buildah)"
    return None if os.geteuid() == 0 else "building images needs root"


class Buildah:
    """A store of images in ``folder``, with pip's cache beside it."""

    def __init__(self, folder: Path) -> None:
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        self._environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
        store = ("--root", str(folder / "store"), "--runroot", str(folder / "run"), "--storage-driver", "overlay")
        self._command = ("buildah", *store)

    def run(self, *words: str, succeed: bool = True) -> str:
        """What a command of buildah's prints; AssertionError, with its end, unless it ends as ``succeed`` says."""
        done = subprocess.run(
            (*self._command, *words), env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert (done.returncode == 0) == succeed, f"buildah {' '.join(words)}: {done.stdout[-3000:]}"
        return done.stdout

    def build(self, image: str, context: Path, file: Path, *options: str, succeed: bool = True) -> str:
        """``docker build``, in buildah's words. What it prints."""
        mounts = [path for path in (*_SETTINGS, _CERTIFICATES) if path.exists()]
        given = [name for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL") if os.environ.get(name)]
        return self.run(
            *("bud", "--isolation", "chroot", "--network", "host", "--pull-never", "--layers", "--format", "docker"),
            *(word for path in mounts for word in ("-v", f"{path}:{path}:ro")),
            *(word for name in given for word in ("--build-arg", f"{name}={os.environ[name]}")),
            *("-t", image, "-f", str(file), *options, str(context)),
            succeed=succeed,
        )

    def layers(self, image: str) -> list[str]:
        """The digests of an image's layers, the lowest first."""
        template = "{{range .OCIv1.RootFS.DiffIDs}}{{.}} {{end}}"
        return self.run("inspect", "--type", "image", "--format", template, image).split()

    def inside(self, image: str, *command: str) -> str:
        """What a command prints that runs in the image, as its user, with its settings."""
        container = self.run("from", "--pull-never", image).strip()
        try:
            return self.run("run", "--isolation", "chroot", container, "--", *command)
        finally:
            self.run("rm", container)

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """The files of an image (a container's: writing there does not change the image)."""
        container = self.run("from", "--pull-never", image).strip()
        try:
            yield Path(self.run("mount", container).strip())
        finally:
            self.run("rm", container)
