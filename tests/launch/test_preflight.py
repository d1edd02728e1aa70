"""The preflight on hosts of their own: each wrong state of the machines shows in its cell of the table, and in no other."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.launch.hosts import Hosts, missing

pytestmark = [
    pytest.mark.launch,
    pytest.mark.timeout(600),
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]
MODEL = ["--num-layers", "4", "--hidden-size", "32", "--ffn-hidden-size", "64", "--seq-length", "32"]
MODEL += ["--global-batch-size", "12"]
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with Hosts(3, tmp_path_factory.mktemp("hosts")) as made:
        yield made


class Preflight:
    """The shipped script, started on some hosts."""

    def __init__(self, hosts, text_data, folder, numbers, own=None, flags=(), **variables):
        """own: environment variables of one host, by its number."""
        self.folder = folder
        self.json = folder / "table.json"
        self.logs = {number: folder / f"{number}.log" for number in numbers}
        common = {
            "HEAD": "node1",
            "NODES": str(len(numbers)),
            "PROCESSES": "1",
            "DATA": str(text_data / "some"),
            "SAVE": str(folder / "run"),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            **variables,
        }
        script = [str(ROOT / "examples" / "preflight.sh"), *MODEL, "--json", str(self.json), *flags]
        self.started = {
            number: hosts[number].start(script, self.logs[number], env={**common, **(own or {}).get(number, {})})
            for number in numbers
        }

    def end(self, seconds: float = 180) -> dict:
        """Wait for all; the table as {(node, check): state} of what is neither OK nor omitted."""
        deadline = time.monotonic() + seconds
        while any(one.poll() is None for one in self.started.values()):
            assert time.monotonic() < deadline, f"still running after {seconds} s: {self.said()}"
            time.sleep(0.1)
        findings = json.loads(self.json.read_text())["findings"] if self.json.exists() else []
        return {(one["node"], one["check"]): one["state"] for one in findings if one["state"] in ("WARN", "FAIL")}

    def codes(self) -> list[int]:
        return [one.returncode for one in self.started.values()]

    def said(self, number: int = 1) -> str:
        return self.logs[number].read_text()

    def figures(self) -> dict:
        return json.loads(self.json.read_text())["figures"]


def test_machines_in_order_pass(hosts, text_data, tmp_path):
    flight = Preflight(hosts, text_data, tmp_path, [1, 2, 3], PROCESSES="2")
    assert flight.end() == {}, flight.said()
    assert flight.codes() == [0, 0, 0]
    assert "preflight passed on node2; HEAD has the table" in flight.said(2)
    table = [line.split()[0] for line in flight.said().splitlines() if line.startswith("node")]
    assert table == ["node", "node1", "node2", "node3"]
    measured = flight.figures()["bandwidth"]["all_reduce"]
    assert sorted((one["what"], "+".join(one["nodes"])) for one in measured) == [
        ("all", "node1+node2+node3"),
        *[("pair", pair) for pair in ("node1+node2", "node2+node3", "node3+node1")],
        *[("within", node) for node in ("node1", "node2", "node3")],
    ]
    assert all(0 < one["algorithm"] <= one["bus"] for one in measured)
    assert max(abs(ahead) for ahead in flight.figures()["clocks"]["offset_seconds"].values()) < 0.1
    assert not list((tmp_path / "run").glob(".mark*"))


def stub_package(folder: Path, name: str, version: str) -> str:
    """A directory in which a package has another version; what PYTHONPATH is with it in front."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return f"{folder}{os.pathsep}{ROOT}"


def test_marks_every_wrong_machine(hosts, text_data, tmp_path):
    """node2 has another megatron-core; node3 a slow cable, a --save and a data directory of its own."""
    save, data = tmp_path / "run", tmp_path / "data"
    data.mkdir()
    for file in filter(Path.is_file, text_data.glob("some_*")):  # not Megatron's cache
        (data / file.name).write_bytes(file.read_bytes())
    hosts[3].own(save, tmp_path / "elsewhere")
    hosts[3].own(data, tmp_path / "nothing")
    hosts[3].slow("200mbit")
    try:
        own = {2: {"PYTHONPATH": stub_package(tmp_path / "stub", "megatron-core", "0.19.1")}}
        flight = Preflight(hosts, text_data, tmp_path, [1, 2, 3], own, DATA=str(data / "some"))
        marked = flight.end()
    finally:
        hosts[3].slow("100gbit")
        hosts[3].own_nothing()
    assert marked == {
        ("node2", "versions"): "FAIL",
        ("node3", "bandwidth"): "WARN",
        ("node3", "save"): "FAIL",
        ("node3", "data"): "FAIL",
    }, flight.said()
    assert flight.codes() == [1, 1, 1]
    said = flight.said()
    assert "FAIL node2 versions: megatron-core 0.19.2 on node1, node3; 0.19.1 on node2; install the same" in said
    assert f"FAIL node3 save: {save}" in said and "not the directory of node1" in said
    assert f"FAIL node3 data: dataset {data}/some_train_text_document does not exist" in said
    assert "slowest machine node3" in said
    pairs = [one for one in flight.figures()["bandwidth"]["all_reduce"] if one["what"] == "pair"]
    slow = [one["bus"] for one in pairs if "node3" in one["nodes"]]
    assert len(slow) == 2 and max(slow) < 0.025  # 200 Mbit/s


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed (Debian: apt install faketime)")
def test_a_clock_that_is_ahead_is_measured(hosts, text_data, tmp_path):
    clock = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": "+7s", "DONT_FAKE_MONOTONIC": "1"}
    flight = Preflight(hosts, text_data, tmp_path, [1, 2], {2: clock})
    assert flight.end() == {("node2", "clocks"): "FAIL"}, flight.said()
    assert 6.9 < flight.figures()["clocks"]["offset_seconds"]["node2"] < 7.1
    assert "FAIL node2 clocks: +7." in flight.said()


def test_a_port_in_use_names_who_has_it(hosts, text_data, tmp_path):
    listen = "import socket, time; s = socket.create_server(('', 29400)); time.sleep(600)"
    other = hosts[1].start([sys.executable, "-c", listen], tmp_path / "other.log")
    try:
        time.sleep(1)
        flight = Preflight(hosts, text_data, tmp_path, [1, 2])
        assert flight.end() == {("node1", "ports"): "FAIL"}, flight.said()
    finally:
        other.kill()
        other.wait()
    assert f"FAIL node1 ports: port 29400 is in use (by process {other.pid}: " in flight.said()


def test_an_interface_that_the_others_do_not_reach_is_named(hosts, text_data, tmp_path):
    hosts[2].run("ip", "link", "add", "other0", "type", "veth", "peer", "name", "other1")  # leads nowhere
    try:
        hosts[2].run("ip", "addr", "add", "10.98.0.2/24", "dev", "other0")
        hosts[2].run("ip", "link", "set", "other0", "up")
        hosts[2].run("ip", "link", "set", "other1", "up")
        own = {2: {"INTERFACE": "other0"}, 3: {"INTERFACE": "ib0"}}
        flight = Preflight(hosts, text_data, tmp_path, [1, 2, 3], own, flags=["--check-timeout", "12"])
        marked = flight.end()
    finally:
        hosts[2].run("ip", "link", "del", "other0")
    assert marked.pop(("node2", "interfaces")) == marked.pop(("node3", "interfaces")) == "FAIL", flight.said()
    assert {check for _, check in marked} <= {"bandwidth"}  # it cannot be measured then
    assert "FAIL node2 interfaces: node1 does not reach it over other0 (10.98.0.2: " in flight.said()
    assert "FAIL node3 interfaces: GLOO_SOCKET_IFNAME=ib0: no interface ib0; this machine has eth0, lo" in flight.said()


def test_a_machine_that_does_not_come_is_missed(hosts, text_data, tmp_path):
    flight = Preflight(hosts, text_data, tmp_path, [1, 2], NODES="3", JOIN_TIMEOUT="25")
    assert flight.end() == {("?", "there"): "FAIL"}, flight.said()
    assert "2 of 3 processes came within 25 s, from node1, node2" in flight.said()
    assert flight.codes() == [1, 1]


def test_a_machine_that_stops_on_the_way_is_named_and_the_rest_resumes(hosts, text_data, tmp_path):
    flight = Preflight(hosts, text_data, tmp_path, [1, 2], flags=["--check-timeout", "8"])
    deadline = time.monotonic() + 60
    while "checking clocks" not in flight.said():
        assert time.monotonic() < deadline, flight.said()
        time.sleep(0.02)
    for pid in hosts[2].pids():
        os.kill(pid, signal.SIGSTOP)
    assert flight.started[1].wait(180) == 1
    hosts[2].kill()
    marked = flight.end()
    lost = [check for node, check in marked if node == "node2"]
    assert len(lost) == 1 and f"FAIL node2 {lost[0]}: process 0 gave no answer within 18 s" in flight.said()
    assert "job: 2 ranks" in flight.said()
