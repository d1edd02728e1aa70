"""The multi-node script on two hosts: what may happen to them, and a run to the bit as if it had not; then bad input."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.launch.hosts import Hosts, missing
from tests.launch.runs import MODEL, events_of, losses_of, steps_done, undisturbed, wait_for

pytestmark = [
    pytest.mark.launch,
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]
STEPS = 300


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with Hosts(2, tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture(scope="module")
def whole(text_data, tmp_path_factory):
    return undisturbed(2, text_data, tmp_path_factory.mktemp("whole"), STEPS)


class Script:
    """``examples/multi_node_torchrun.sh``, one process a host."""

    def __init__(self, hosts, text_data: Path, folder: Path, **variables: str) -> None:
        self.hosts, self.save, self.logs = hosts, folder / "run", [folder / f"{number}.log" for number in (1, 2)]
        self.variables = {
            "HEAD": "node1",
            "NODES": "2",
            "PROCESSES": "1",
            "DATA": str(text_data / "some"),
            "SAVE": str(self.save),
            "SAVE_INTERVAL": "50",
            "RENDEZVOUS_TIMEOUT": "200",
            "TIMEOUT_MINUTES": "1",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            **variables,
        }
        self.started: dict = {}

    def start(self, number: int, *flags: str, **variables: str):
        words = [str(ROOT / "examples" / "multi_node_torchrun.sh"), *MODEL, "--train-iters", str(STEPS), *flags]
        log, env = self.logs[number - 1], {**self.variables, **variables}
        self.started[number] = self.hosts[number].start(words, log, env=env)
        return self.started[number]

    def reach(self, step: int) -> None:
        wait_for(lambda: steps_done(self.save) >= step, 180, *self.logs)

    def end(self, seconds: float = 400) -> list[int]:
        """Wait for all; their exit codes."""
        wait_for(lambda: all(one.poll() is not None for one in self.started.values()), seconds, *self.logs)
        return [self.started[number].returncode for number in sorted(self.started)]

    def said(self, number: int) -> str:
        return self.logs[number - 1].read_text()

    def last_line(self, number: int) -> str:
        return self.said(number).splitlines()[-1]


@pytest.fixture()
def script(hosts, text_data, tmp_path):
    made = Script(hosts, text_data, tmp_path)
    yield made
    for host in hosts:
        host.kill()
        host.own_nothing()


def restart_host(script: Script) -> None:
    script.hosts[2].kill()
    time.sleep(3)
    script.start(2)


def kill_worker(script: Script) -> None:
    for pid in script.hosts[2].pids():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"megatron_cod.training.torchrun" not in words and b"megatron_cod.training.pretrain" in words:
            os.kill(pid, signal.SIGKILL)


def cut(seconds: float):
    def disturb(script: Script) -> None:
        script.hosts[2].cut()
        time.sleep(seconds)
        script.hosts[2].restore()

    return disturb


DISTURBANCES = {
    "nothing": lambda script: None,
    "a host is killed and started again": restart_host,
    "a rank is killed": kill_worker,
    "the link is cut, shorter than a rank waits": cut(20),
    "the link is cut, longer than a rank waits": cut(75),
}


@pytest.mark.parametrize("name", DISTURBANCES)
def test_the_run_continues_to_the_losses_of_the_undisturbed(script, whole, name):
    script.start(1)
    script.start(2)
    script.reach(60)
    DISTURBANCES[name](script)
    assert script.end() == [0, 0], script.said(1)[-3000:] + script.said(2)[-3000:]
    assert losses_of(script.save) == whole
    starts = events_of(script.save).count("start")
    assert starts == (1 if name == "nothing" or "shorter" in name else 2)


def test_when_head_is_lost_all_end_with_one_line_and_the_same_line_continues(script, whole):
    script.start(1)
    other = script.start(2)
    script.reach(60)
    script.hosts[1].kill()
    other.wait(60)
    assert other.returncode == 1
    assert script.last_line(2).startswith("error: HEAD is gone: node1:29400 does not answer any more")
    script.start(1)
    script.start(2)
    assert script.end() == [0, 0]
    assert losses_of(script.save) == whole


def test_a_signal_to_one_host_ends_all_after_saving_and_the_same_line_continues(script, whole):
    """The agents do not start again what was told to stop."""
    script.start(1)
    script.start(2)
    script.reach(60)
    script.started[2].send_signal(signal.SIGTERM)
    assert script.end(90) == [85, 143]
    assert "was stopped by a signal, after saving" in script.last_line(1)
    assert "stopped by a signal" in events_of(script.save)
    script.start(1)
    script.start(2)
    assert script.end() == [0, 0]
    assert losses_of(script.save) == whole


# Bad input: one clear line, last on every host; exit code not 0; in time.


def test_names_head_that_is_down(script):
    begun = time.monotonic()
    script.start(2, RENDEZVOUS_TIMEOUT="8")
    assert script.end(60) == [2]
    assert time.monotonic() - begun < 40
    assert script.last_line(2).startswith("error: HEAD did not answer at node1:29400 within 8 s (Connection refused)")


def test_names_unreachable_head(script):
    script.hosts[2].cut()
    try:
        script.start(2, RENDEZVOUS_TIMEOUT="8")
        assert script.end(60) == [2]
    finally:
        script.hosts[2].restore()
    assert script.last_line(2).startswith("error: HEAD did not answer at node1:29400 within 8 s (")


def test_rejects_wrong_name_of_head(script):
    script.start(2, HEAD="node7")
    assert script.end(60) == [2]
    assert script.last_line(2).startswith("error: HEAD node7 is not a host name known here (")


def test_names_port_in_use(script):
    listen = "import socket, time; s = socket.create_server(('', 29400)); time.sleep(600)"
    other = script.hosts[1].start([sys.executable, "-c", listen], script.logs[0].with_name("other.log"))
    time.sleep(1)
    script.start(1)
    script.start(2)
    assert script.end(90) == [2, 2]
    assert f"error: port 29400 of node1 is in use (by process {other.pid}: " in script.last_line(1)
    assert "error: what listens at node1:29400 is not a rendezvous" in script.last_line(2)


def test_names_missing_machines(script):
    script.start(1, NODES="3", RENDEZVOUS_TIMEOUT="25")
    script.start(2, NODES="3", RENDEZVOUS_TIMEOUT="25")
    assert script.end(90) == [1, 1]
    line = script.last_line(1)
    assert line == "error: fewer than 3 machines were at node1:29400 within 25 s; there came node1, node2"
    assert script.last_line(2).startswith("error: ")


def test_rejects_unequal_code(script, tmp_path):
    """node2 has an older checkout."""
    older = tmp_path / "older"
    shutil.copytree(ROOT / "megatron_cod", older / "megatron_cod", ignore=shutil.ignore_patterns("__pycache__"))
    init = older / "megatron_cod" / "__init__.py"
    init.write_text(init.read_text().replace('__version__ = "', '__version__ = "0.0.'))
    script.start(1)
    # The script goes to its own checkout's directory; this one stands in for it.
    shutil.copytree(ROOT / "examples", older / "examples")
    shutil.copytree(ROOT / "recipes", older / "recipes")
    words = [str(older / "examples" / "multi_node_torchrun.sh"), *MODEL, "--train-iters", str(STEPS)]
    env = {**script.variables, "PYTHONPATH": str(older)}
    script.started[2] = script.hosts[2].start(words, script.logs[1], env=env)
    assert script.end(120) == [2, 2], script.said(1)[-3000:]
    for number in (1, 2):
        line = script.last_line(number)
        assert "the machines run different versions: megatron_cod " in line and "on node1 (rank " in line, line
    assert not list(script.save.glob("iter_*"))


def test_save_is_not_shared(script, tmp_path):
    script.hosts[2].own(script.save, tmp_path / "elsewhere")
    script.start(1)
    script.start(2)
    assert script.end(120) == [2, 2]
    for number in (1, 2):
        assert f"--save {script.save} is not one directory on all machines" in script.last_line(number)


def test_data_is_missing_on_one_machine(script, text_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(text_data, data)
    script.hosts[2].own(data, tmp_path / "nothing")
    begun = time.monotonic()
    script.start(1, DATA=str(data / "some"))
    script.start(2, DATA=str(data / "some"))
    assert script.end(120) == [2, 2]
    assert time.monotonic() - begun < 90
    missing_data = f"dataset {data / 'some_train_text_document'} does not exist"
    assert missing_data in script.last_line(1) and "on node2: " in script.last_line(1)
    assert missing_data in script.last_line(2)
