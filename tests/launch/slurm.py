"""A real Slurm on this machine: two compute nodes and a controller, each a host of its own, without systemd or cgroups."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.launch import hosts
from tests.launch.hosts import Hosts

NEEDED = ("slurmctld", "slurmd", "sbatch", "scontrol", "srun")
CONTROLLER = 3
_CONFIG = """\
ClusterName=test
SlurmctldHost=node3
SlurmUser=root
{authentication}
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
NodeName=node[1-2] CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# A requeued job waits until its credential has expired: two minutes where nothing else is said.
_WITHOUT_MUNGE = "AuthType=auth/none\nCredType=cred/none\nAuthInfo=cred_expire=5"
_WITH_MUNGE = "AuthType=auth/munge\nCredType=cred/munge\nAuthInfo=socket={folder}/munge/socket,cred_expire=5"


def missing(munge: bool = False) -> str | None:
    """Why no cluster can be had here; None when it can."""
    absent = [name for name in (*NEEDED, *["munged"] * munge) if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: apt install slurm-wlm{' munge' * munge})"
    return hosts.missing()


class Cluster:
    """Two nodes of two CPUs and two devices that stand for GPUs. ``with Cluster(folder) as cluster: ...``

    ``plugstack`` is what Slurm's plugstack.conf says: the plugins of tasks.
    """

    def __init__(self, folder: Path, munge: bool = False, plugstack: str = "") -> None:
        self.folder, self.munge, self.plugstack = folder, munge, plugstack
        self.hosts = Hosts(3, folder / "hosts")
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> "Cluster":
        for name in ("state", "spool/node1", "spool/node2", "log", "run", "munge"):
            (self.folder / name).mkdir(parents=True)
        for number in (0, 1):  # copies of /dev/null: Slurm wants devices
            os.mknod(self.folder / f"gpu{number}", 0o600 | 0o020000, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"NodeName=node[1-2] Name=gpu File={self.folder}/gpu[0-1]\n")
        authentication = (_WITH_MUNGE if self.munge else _WITHOUT_MUNGE).format(folder=self.folder)
        (self.folder / "slurm.conf").write_text(_CONFIG.format(folder=self.folder, authentication=authentication))
        (self.folder / "plugstack.conf").write_text(self.plugstack)
        self.hosts.__enter__()
        try:
            if self.munge:
                self._start_munge()
            self._daemon(CONTROLLER, "slurmctld", "-D", "-c")
            for number in (1, 2):
                self.start(number)
            self.wait_for_nodes()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.hosts.__exit__()

    def _daemon(self, number: int, *words: str) -> subprocess.Popen:
        return self.hosts[number].start(words, self.folder / "log" / f"{words[0]}.out", env=self.environment)

    def _start_munge(self) -> None:
        """One for all: its socket lies in the file system, which the hosts share."""
        place = self.folder / "munge"
        (place / "key").write_bytes(os.urandom(1024))
        (place / "key").chmod(0o400)
        place.chmod(0o711)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        # --force: the folder above is a test's, which others may write
        self._daemon(CONTROLLER, "munged", "--foreground", "--force", *(f"--{k}={place / v}" for k, v in files.items()))
        deadline = time.monotonic() + 10
        while not (place / "socket").exists():
            assert time.monotonic() < deadline, (self.folder / "log" / "munged.out").read_text()
            time.sleep(0.1)

    def start(self, number: int) -> None:
        """Start a compute node, for the first time or after ``lose``."""
        self._daemon(number, "slurmd", "-D", "-N", f"node{number}")

    def lose(self, number: int) -> None:
        """A compute node loses power: its slurmd and all that it runs."""
        self.hosts[number].kill()

    def wait_for_nodes(self, seconds: float = 30) -> None:
        """Until both compute nodes are idle."""
        deadline = time.monotonic() + seconds
        while len(self.run("sinfo", "-h", "-N", "-t", "idle").splitlines()) < 2:
            if time.monotonic() > deadline:
                log = (self.folder / "log" / "slurmctld.log").read_text()[-2000:]
                raise AssertionError(f"the cluster is not idle after {seconds} s: {self.run('sinfo')}\n{log}")
            time.sleep(0.3)

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> str:
        """A command's output on the controller's host; AssertionError, with what it said, when it fails."""
        words = ["env", "-C", str(cwd or self.folder), *command]
        return self.hosts[CONTROLLER].run(*words, env={**self.environment, **variables})

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm says of a job."""
        text = self.run("scontrol", "show", "job", job, "-o")
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def ranks(self, number: int) -> list[int]:
        """The training ranks on a compute node, by process id."""
        return [pid for pid in self.hosts[number].pids() if _is_rank(pid)]

    def kill_a_rank(self, number: int) -> None:
        os.kill(self.ranks(number)[-1], signal.SIGKILL)


def _is_rank(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    # Not the helpers of a save, which are started with other words.
    return b"RANK=" in environment and words[1:3] == [b"-m", b"megatron_cod.training.pretrain"]
