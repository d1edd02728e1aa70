"""Hosts on one machine: network namespaces on a bridge that lies in a namespace of its own, so that no packet can leave.

Each process of a host has the host's name, its own ``/etc/hosts`` and no name service behind it, and, where asked for, its
own directory under a path that all share. Names are unique to the test process; nothing of the machine's network is
touched. ``with Hosts(2, folder) as hosts: hosts[1].start(["python", ...], log)``.
"""

import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

NEEDED = ("ip", "nsenter", "unshare")
_COUNTER = itertools.count()

# A mount namespace a process: it sees its host's files under /etc, and its host's directories in the place of shared ones.
# Not `ip netns exec`, which mounts a new /sys and hides the control groups that slurmd looks for.
_ENTER = """
name=$1 etc=$2 binds=$3; shift 3
hostname "$name"
for file in hosts nsswitch.conf resolv.conf; do mount --bind "$etc/$file" "/etc/$file"; done
while read -r own place; do [ -z "$own" ] || mount --bind "$own" "$place"; done <<< "$binds"
exec "$@"
"""


def missing() -> str | None:
    """Why no hosts can be had here; None when they can."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: apt install iproute2 util-linux)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"cod{os.getpid()}probe"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if done.returncode:
        return f"this kernel or container gives no network namespaces: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


class Host:
    """One of the hosts: ``node1`` and so on, at 10.99.0.1 and so on, on its ``eth0``."""

    def __init__(self, number: int, prefix: str, folder: Path) -> None:
        self.number, self.name, self.address = number, f"node{number}", f"10.99.0.{number}"
        self.namespace, self._switch, self._port = f"{prefix}h{number}", f"{prefix}sw", f"v{number}"
        self._etc = folder / self.name
        self._binds: dict[Path, Path] = {}
        self._started: list[subprocess.Popen] = []

    def up(self, count: int) -> None:
        _ip("netns", "add", self.namespace)
        _ip("-n", self.namespace, "link", "set", "lo", "up")
        ends = ("netns", self.namespace, "type", "veth", "peer", "name", self._port, "netns", self._switch)
        _ip("link", "add", "eth0", *ends)
        _ip("-n", self._switch, "link", "set", self._port, "master", "br0", "up")
        _ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.namespace, "link", "set", "eth0", "up")
        self._etc.mkdir(parents=True)
        names = [f"10.99.0.{number} node{number}" for number in range(1, count + 1)]
        (self._etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
        (self._etc / "resolv.conf").write_text("")
        # No name service: each look-up backwards would wait 5 s for it.
        (self._etc / "nsswitch.conf").write_text("hosts: files\n")

    def down(self) -> None:
        self.kill()
        subprocess.run(["ip", "netns", "del", self.namespace], stderr=subprocess.DEVNULL)

    def own(self, place: Path, own: Path) -> None:
        """Processes started from now on see the directory ``own`` at ``place``."""
        own.mkdir(parents=True, exist_ok=True)
        place.mkdir(parents=True, exist_ok=True)
        self._binds[place] = own

    def own_nothing(self) -> None:
        """Processes started from now on see every directory as the others do."""
        self._binds.clear()

    def command(self, words: Sequence[str]) -> list[str]:
        """The command that runs ``words`` on this host; it becomes them, under the same process id."""
        binds = "\n".join(f"{own} {place}" for place, own in self._binds.items())
        enter = ["nsenter", f"--net=/run/netns/{self.namespace}", "--"]
        enter += ["unshare", "--uts", "--mount", "--propagation", "private", "--"]
        return [*enter, "bash", "-c", _ENTER, "enter", self.name, str(self._etc), binds, *words]

    def start(
        self, words: Sequence[str], log: Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen:
        """Start a command there; what it says is appended to ``log``."""
        with log.open("ab") as file:
            process = subprocess.Popen(
                self.command(words),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, **(env or {})},
            )
        self._started.append(process)
        return process

    def run(self, *words: str, timeout: float = 60, env: Mapping[str, str] | None = None) -> str:
        """A command's output; AssertionError, with what it said, when it fails."""
        done = subprocess.run(
            self.command(words), capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def pids(self) -> list[int]:
        """Every process in the host's network."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True)
        return [int(pid) for pid in listed.stdout.split()]

    def kill(self) -> None:
        """The host loses power: SIGKILL to every process on it."""
        while pids := self.pids():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            for process in self._started:
                process.poll()  # a dead child that nobody waited for stays in the list
            time.sleep(0.05)

    def cut(self) -> None:
        """Pull its cable."""
        _ip("-n", self._switch, "link", "set", self._port, "down")

    def restore(self) -> None:
        _ip("-n", self._switch, "link", "set", self._port, "up")

    def slow(self, rate: str) -> None:
        """Limit what it sends, e.g. to ``80mbit``."""
        shape = ["root", "tbf", "rate", rate, "burst", "256kb", "latency", "400ms"]
        done = subprocess.run(
            ["tc", "-n", self.namespace, "qdisc", "replace", "dev", "eth0", *shape], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


class Hosts:
    """So many hosts that see each other and nothing else."""

    def __init__(self, count: int, folder: Path) -> None:
        self._prefix = f"cod{os.getpid()}n{next(_COUNTER)}"
        self._hosts = [Host(number, self._prefix, folder) for number in range(1, count + 1)]

    def __enter__(self) -> "Hosts":
        switch = f"{self._prefix}sw"
        try:
            _ip("netns", "add", switch)
            _ip("-n", switch, "link", "add", "br0", "type", "bridge")
            _ip("-n", switch, "link", "set", "br0", "up")
            for host in self._hosts:
                host.up(len(self._hosts))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._hosts:
            host.down()
        subprocess.run(["ip", "netns", "del", f"{self._prefix}sw"], stderr=subprocess.DEVNULL)

    def __getitem__(self, number: int) -> Host:
        """Hosts count from 1, like their names."""
        return self._hosts[number - 1]

    def __iter__(self):
        return iter(self._hosts)
