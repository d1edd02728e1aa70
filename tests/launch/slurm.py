"""A real Slurm on this machine: a controller and several slurmd, over loopback, without munge, systemd or cgroups."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "sbatch", "scontrol", "srun")
_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={port}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
SlurmdTimeout=20
KillWait=5
GresTypes=gpu
PlugStackConfig={folder}/plugstack.conf
NodeName=node[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=2 RealMemory=4000 Gres=gpu:2
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no cluster can be had here; None when it can."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: apt install slurm-wlm)"
    return None if os.geteuid() == 0 else "a test cluster needs root"


def _ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class Cluster:
    """Two nodes of two CPUs and two devices that stand for GPUs. ``with Cluster(folder) as cluster: ...``

    ``plugstack`` is what Slurm's plugstack.conf says: the plugins of tasks.
    """

    def __init__(self, folder: Path, plugstack: str = "") -> None:
        self.folder = folder
        self.plugstack = plugstack
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> "Cluster":
        for name in ("state", "spool/node1", "spool/node2", "log", "run"):
            (self.folder / name).mkdir(parents=True)
        for number in (0, 1):  # copies of /dev/null: Slurm wants devices
            os.mknod(self.folder / f"gpu{number}", 0o600 | 0o020000, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"NodeName=node[1-2] Name=gpu File={self.folder}/gpu[0-1]\n")
        first = 20000 + os.getpid() % 20000
        config = _CONFIG.format(
            host=socket.gethostname().split(".")[0],
            folder=self.folder,
            port=_ports(1)[0],
            first=first,
            last=first + 1,
        )
        (self.folder / "slurm.conf").write_text(config)
        (self.folder / "plugstack.conf").write_text(self.plugstack)
        self.run("slurmctld", "-f", self.environment["SLURM_CONF"], "-c")
        for node in ("node1", "node2"):
            self.run("slurmd", "-f", self.environment["SLURM_CONF"], "-N", node, "-b")
        deadline = time.monotonic() + 30
        while len(self.run("sinfo", "-h", "-N", "-t", "idle").split()) < 2 * 4:
            if time.monotonic() > deadline:
                log = (self.folder / "log" / "slurmctld.log").read_text()[-2000:]
                raise AssertionError(f"the cluster is not idle after 30 s: {self.run('sinfo')}\n{log}")
            time.sleep(0.3)
        return self

    def __exit__(self, *_: object) -> None:
        for path in (self.folder / "run").glob("*.pid"):
            subprocess.run(["kill", path.read_text().strip()], stderr=subprocess.DEVNULL)
        time.sleep(1)

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> str:
        """A command's output; AssertionError, with what it said, when it fails."""
        done = subprocess.run(
            command, env={**self.environment, **variables}, cwd=cwd, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm says of a job."""
        text = self.run("scontrol", "show", "job", job, "-o")
        return dict(word.split("=", 1) for word in text.split() if "=" in word)
