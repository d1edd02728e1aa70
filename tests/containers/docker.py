"""A Docker daemon of the tests' own, in a network namespace with nothing in it but loopback."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.containers.buildah import Buildah

_FLAGS = ("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false")
# Debian's client, of the daemon's version: another one that stands before it on PATH may lack what it needs.
CLIENT = "/usr/bin/docker"


def missing() -> str | None:
    """Why no daemon can be started here; None when it can."""
    absent = [name for name in ("dockerd", "ip", "unshare") if shutil.which(name) is None]
    if absent or not Path(CLIENT).exists():
        return f"not installed: {', '.join(absent or [CLIENT])} (Debian: apt install docker.io iproute2)"
    return None if os.geteuid() == 0 else "a Docker daemon needs root"


class Daemon:
    """``with Daemon(folder) as docker: ...``. Any user may talk to it: ``environment`` has where."""

    WARNING = "WARNING: IPv4 forwarding is disabled. Networking will not work."  # which is meant so here

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # A socket's path has 107 characters at most, and other users must reach it.
        self._socket = Path(tempfile.mkdtemp(prefix="docker")) / "socket"
        self._socket.parent.chmod(0o755)
        self.environment = {
            **os.environ,
            "DOCKER_HOST": f"unix://{self._socket}",
            "DOCKER_BUILDKIT": "1",
            "PATH": f"{Path(CLIENT).parent}:{os.environ['PATH']}",
        }

    def __enter__(self) -> "Daemon":
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = {"--data-root": "data", "--exec-root": "exec", "--pidfile": "pid"}
        settings = [f"{flag}={self.folder / name}" for flag, name in paths.items()]
        daemon = ("dockerd", *settings, *_FLAGS, "--storage-driver=overlay2", "-H", self.environment["DOCKER_HOST"])
        # The script becomes the daemon. Its mounts end with its mount namespace.
        script = 'ip link set lo up && exec "$@"'
        with (self.folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                ("unshare", "--net", "--mount", "--propagation", "slave", "sh", "-c", script, "sh", *daemon),
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while subprocess.run((CLIENT, "version"), env=self.environment, capture_output=True).returncode != 0:
            said = (self.folder / "log").read_text()[-2000:]
            assert self._process.poll() is None and time.monotonic() < deadline, f"no Docker daemon: {said}"
            time.sleep(0.3)
        self._socket.chmod(0o666)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)
        shutil.rmtree(self._socket.parent)

    def run(self, *words: str, cwd: Path | None = None) -> str:
        """What ``docker WORDS`` prints; AssertionError, with its end, when it fails."""
        done = subprocess.run(
            (CLIENT, *words), cwd=cwd, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0, f"docker {' '.join(words)}: {done.stdout[-3000:]}"
        return done.stdout

    def load(self, store: Buildah, image: str, folder: Path) -> None:
        """An image out of buildah's store, through a pipe: as a file it would need its size once more."""
        held = store.run("images", "--no-trunc", "--quiet", image).strip()
        if held in self.run("images", "--no-trunc", "--quiet").split():
            return
        pipe = folder / "pipe"
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        loading = subprocess.Popen((CLIENT, "load", "--quiet", "--input", pipe), env=self.environment)
        store.run("push", "--quiet", image, f"docker-archive:{pipe}:{image}")
        assert loading.wait(600) == 0
        self.run("image", "prune", "--force")  # what had the name before
