"""Checks of what a machine has: versions, clock, port, interface, GPUs. Each wrong state fails, and only where it is."""

import itertools
import socket
import time

import pytest

from megatron_cod.launch.versions import code_digest, versions_here
from megatron_cod.preflight import clocks, gpus, interfaces, ports, versions
from megatron_cod.preflight.service import Answer, Service, ask
from megatron_cod.preflight.table import open_service
from tests.ports import free_port, is_free
from tests.preflight.here import compare, here

SAME = {"python": "3.12.1", "torch": "2.15.0", "megatron-core": "0.19.2", "megatron_cod": "0.1.0 (code 1)"}


def test_versions_of_this_machine():
    found = versions_here()
    assert {"python", "torch", "megatron-core", "megatron_cod"} <= set(found)
    assert code_digest() in found["megatron_cod"]


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ({"torch": "2.14.0"}, "FAIL"),
        ({"megatron-core": "0.19.1"}, "FAIL"),
        ({"megatron_cod": "0.1.0 (code 2)"}, "FAIL"),
        ({"transformer_engine": "2.1"}, "FAIL"),
        ({"python": "3.12.9"}, "WARN"),
        ({"driver": "550.1"}, "WARN"),
    ],
)
def test_a_machine_with_other_versions_is_named(changed, state):
    marked, outcome = compare(versions, {"a": SAME, "b": {**SAME, **changed}, "c": SAME})
    assert marked == {"b": state}
    name, version = next(iter(changed.items()))
    said = next(one.text for one in outcome.findings if one.node == "b")
    assert said.startswith(f"{name} ") and f"{version} on b" in said and "on a, c" in said


def test_the_same_versions_pass():
    marked, outcome = compare(versions, {"a": SAME, "b": SAME})
    assert marked == {} and outcome.line.startswith("python 3.12.1, torch 2.15.0")


def test_the_digest_is_of_the_code(tmp_path):
    (tmp_path / "one.py").write_text("x = 1\n")
    before = code_digest(tmp_path)
    code_digest.cache_clear()
    (tmp_path / "one.py").write_text("x = 2\n")
    assert code_digest(tmp_path) != before
    code_digest.cache_clear()


def test_the_offset_is_that_of_the_quickest_answer():
    """Two slow answers, delayed on one way only, would say 0.5 s and more."""
    clock = itertools.count()
    slow = [Answer("", 100.0 + next(clock), 103.0, 104.0), Answer("", 100.0, 103.0, 105.0)]
    ahead, error = clocks.offset([*slow, Answer("", 100.0, 103.0, 103.02)])
    assert ahead == pytest.approx(3.01) and error == pytest.approx(0.01)


def test_a_clock_is_measured_over_a_connection():
    service = Service("127.0.0.1", 0, "secret", clock=lambda: time.time() - 7)
    try:
        ahead, error = clocks.offset(ask("127.0.0.1", service.port, times=16))
    finally:
        service.close()
    assert abs(ahead - 7) <= error + 0.01 < 1


@pytest.mark.parametrize(("ahead", "state"), [(0.1, None), (-1.0, "WARN"), (-7.0, "FAIL"), (7.0, "FAIL")])
def test_compares_clocks(ahead, state):
    marked, _ = compare(clocks, {"a": [0.0, 0.0], "b": [ahead, 0.001]})
    assert marked == ({"b": state} if state else {})


def test_port_in_use_fails_on_head_and_names_its_holder():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert not is_free(port) and free_port(port) > port
        found = open_service(port)
        assert f"port {port} is in use (by process " in found["port_error"]
        assert ask("127.0.0.1", found["service"])[0].secret == found["secret"]  # the clock is served anyway
    marked, _ = compare(ports, {"a": found["port_error"], "b": "?"})
    assert marked == {"a": "FAIL"}


def test_a_port_that_is_not_reached_fails_there():
    marked, _ = compare(ports, {"a": "", "b": "a:29400 is not reached: timed out", "c": ""})
    assert marked == {"b": "FAIL"}


def test_another_program_at_the_port_is_noticed():
    with socket.create_server(("127.0.0.1", 0)) as other:
        import threading

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(OSError, match="another program answers there: 'SSH"):
            ask("127.0.0.1", other.getsockname()[1])


PRESENT = {"lo": ["127.0.0.1"], "eth0": ["10.0.0.2"], "ib0": ["10.1.0.2"], "down0": []}


@pytest.mark.parametrize(
    ("variables", "own", "expected"),
    [
        ({}, ["10.0.0.2"], ("eth0", "10.0.0.2")),
        ({"GLOO_SOCKET_IFNAME": "ib0"}, ["10.0.0.2"], ("ib0", "10.1.0.2")),
        (
            {"GLOO_SOCKET_IFNAME": "ib1"},
            ["10.0.0.2"],
            "GLOO_SOCKET_IFNAME=ib1: no interface ib1; this machine has eth0, ib0, lo",
        ),
        ({"GLOO_SOCKET_IFNAME": "down0"}, ["10.0.0.2"], "down0 has no address"),
        ({"NCCL_SOCKET_IFNAME": "ib"}, ["10.0.0.2"], ("eth0", "10.0.0.2")),
        ({"NCCL_SOCKET_IFNAME": "=ib"}, ["10.0.0.2"], "NCCL_SOCKET_IFNAME==ib: no such interface"),
        ({}, ["127.0.1.1"], "the machine's own name leads to 127.0.1.1, where no other machine finds it"),
        ({}, [], "the machine's own name leads to nothing"),
    ],
)
def test_the_interface_that_gloo_would_take(variables, own, expected):
    if isinstance(expected, tuple):
        assert interfaces.choose(variables, PRESENT, own, False) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            interfaces.choose(variables, PRESENT, own, False)


def test_alone_loopback_will_do():
    assert interfaces.choose({}, PRESENT, ["127.0.1.1"], True) == ("lo", "127.0.0.1")


@pytest.mark.parametrize(
    ("setting", "taken"),
    [
        ("eth", "eth0 eth1"),
        ("=eth0", "eth0"),
        ("^docker", "eth0 eth1 ib0"),
        ("^=eth0", "eth1 ib0 docker0"),
        ("ib,eth1", "ib0 eth1"),
    ],
)
def test_matches_interfaces_as_nccl_does(setting, taken):
    names = ("eth0", "eth1", "ib0", "docker0")
    assert {name for name in names if interfaces.nccl_takes(setting, name)} == set(taken.split())


def interface(neighbour: str, **changed) -> dict:
    variables = {"GLOO_SOCKET_IFNAME": "", "NCCL_SOCKET_IFNAME": ""}
    usual = {
        "interface": "eth0",
        "address": "10.0.0.1",
        "mtu": 1500,
        "variables": variables,
        "wrong": "",
        "unreached": "",
    }
    return {**usual, "neighbour": neighbour, **changed}


def test_marks_wrong_interfaces():
    answers = {
        "a": interface("b", unreached="10.0.0.2: timed out"),
        "b": interface("c"),
        "c": interface("d", wrong="GLOO_SOCKET_IFNAME=ib1: no interface ib1"),
        "d": interface("e", mtu=9000),
        "e": interface("a"),
    }
    marked, outcome = compare(interfaces, answers)
    assert marked == {"b": "FAIL", "c": "FAIL", "d": "WARN"}
    assert "a does not reach it over eth0 (10.0.0.2: timed out)" in next(
        f.text for f in outcome.findings if f.node == "b"
    )


LINES = "0, NVIDIA H100 80GB HBM3, 81559, 4, 0\n1, NVIDIA H100 80GB HBM3, 81559, 4, [N/A]\n"


def gpu_answer(text: str = LINES, seen: int = 2, processes: int = 2, smi: bool = True) -> dict:
    return {"gpus": gpus.parse(text), "seen": seen, "processes": processes, "smi": smi}


@pytest.mark.parametrize(
    ("answer", "state", "said"),
    [
        (gpu_answer(LINES.splitlines()[0], 1, 1), "FAIL", "1 x NVIDIA H100 80GB HBM3, most machines have 2 x"),
        (gpu_answer(LINES.replace("H100", "A100")), "FAIL", "2 x NVIDIA A100 80GB HBM3, most machines"),
        (gpu_answer("", 0), "FAIL", "0 x no GPU, most machines have 2 x"),
        (gpu_answer(seen=0), "FAIL", "2 GPUs, but torch sees none"),
        (gpu_answer(LINES.replace("4, 0", "4, 3")), "FAIL", "GPU 0 has 3 uncorrected memory errors"),
        (gpu_answer(LINES.replace("4, 0", "40000, 0")), "WARN", "GPU 0 has 40000 of 81559 MiB in use"),
        (gpu_answer(processes=1), "WARN", "1 processes for 2 GPUs"),
        (gpu_answer(processes=3), "FAIL", "3 processes for 2 GPUs: NCCL takes one process a GPU"),
        (gpu_answer(smi=False), "WARN", "2 GPUs by torch's count; there is no nvidia-smi"),
        (gpu_answer(), None, "in order"),
    ],
)
def test_compares_gpus(answer, state, said):
    marked, outcome = compare(gpus, {"a": gpu_answer(), "b": answer, "c": gpu_answer()})
    assert marked == ({"b": state} if state else {})
    assert said in next(one.text for one in outcome.findings if one.node == "b")


def test_without_gpus_there_is_a_note():
    marked, outcome = compare(gpus, {"a": gpu_answer("", 0), "b": gpu_answer("", 0)})
    assert marked == {} and outcome.line == "none, by nvidia-smi and torch: not checked"
    assert {one.state for one in outcome.findings} == {"-"}


def test_an_nvidia_smi_that_fails_is_quoted(tmp_path, monkeypatch):
    stub = tmp_path / "nvidia-smi"
    stub.write_text("#!/bin/sh\necho 'Driver/library version mismatch'; exit 18\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ValueError, match="nvidia-smi: Driver/library version mismatch"):
        gpus.collect(here())
