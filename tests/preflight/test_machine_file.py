"""The preflight's figures as a machine file: constants that the planner's own formulas give back."""

from dataclasses import replace
from typing import Any

import pytest
import yaml

from megatron_cod.errors import UserError
from megatron_cod.planner.collectives import Group, all_reduce
from megatron_cod.planner.machine import BUILT_IN, Efficiency, find_machine
from megatron_cod.preflight import speed
from megatron_cod.preflight.findings import Outcome
from megatron_cod.preflight.machine_file import links, machine_content, write_machine_file
from megatron_cod.preflight.table import Result
from tests.preflight.here import compare

REACHED = replace(BUILT_IN["h100"], efficiency=Efficiency(1.0, 1.0, 1.0, 1.0, 1.0))
"""A machine whose figures are what is reached."""
SIZE = 1 << 30


def figure(what: str, nodes: str, ranks: int) -> dict[str, Any]:
    """As ``bandwidth.compare`` has it, with the times that the planner predicts."""
    group = Group(ranks, ranks // len(nodes))
    seconds, latency = all_reduce(REACHED, group, SIZE), all_reduce(REACHED, group, 4)
    return {"what": what, "nodes": list(nodes), "ranks": ranks, "seconds": seconds, "latency": latency, "bytes": SIZE}


def rank(node: str, process: int, share: float = 1.0, **changed: Any) -> dict[str, Any]:
    rates = {"products": {"bf16": 600e12 * share, "fp32": 50e12}, "attention": 450e12, "memory": 2.9e12 * share}
    return {"node": node, "process": process, "device": "NVIDIA H100", "memory_bytes": 80 << 30, **rates, **changed}


def results(ranks: list[dict[str, Any]], figures: list[dict[str, Any]]) -> list[Result]:
    return [
        Result("speed", Outcome([], figures={"ranks": ranks})),
        Result("bandwidth", Outcome([], figures={"all_reduce": figures})),
    ]


def test_links_are_those_of_the_machine_that_was_measured():
    found = links([figure("all", "abc", 24), figure("within", "a", 8), figure("pair", "ab", 16)], per_node=8)
    assert found["node_gbps"] == pytest.approx(450, rel=1e-3)
    assert found["node_latency_us"] == pytest.approx(5.7, rel=1e-3)
    assert found["network_gbps"] == pytest.approx(50, rel=1e-3)
    assert found["network_latency_us"] == pytest.approx(14, rel=1e-2)


def test_the_slowest_pair_counts():
    slow = figure("pair", "bc", 16)
    slow["seconds"] *= 4
    found = links([figure("within", "a", 8), figure("pair", "ab", 16), slow], per_node=8)
    assert found["network_gbps"] < 50 / 3


def test_nodes_of_one_process_have_a_network_only():
    found = links([figure("all", "ab", 2)], per_node=1)
    assert found["network_gbps"] == pytest.approx(50, rel=1e-3)
    assert (found["node_gbps"], found["node_latency_us"]) == (found["network_gbps"], found["network_latency_us"])


def test_the_slowest_process_sets_the_rates():
    ranks = [rank("a", 0), rank("a", 1, share=0.5)]
    content = machine_content(results(ranks, [figure("all", "a", 2)]), "here")
    assert content["memory_gbps"] == pytest.approx(1450)
    assert content["efficiency"]["products"] == pytest.approx(300 / 989, rel=1e-3)


def test_a_known_gpu_keeps_its_peaks():
    content = machine_content(results([rank("a", 0), rank("a", 1)], [figure("all", "a", 2)]), "here")
    assert content["peak_tflops"] == dict(BUILT_IN["h100"].peak_tflops)
    assert content["efficiency"]["products"] == pytest.approx(600 / 989, rel=1e-3)
    assert content["efficiency"]["attention"] == pytest.approx(450 / 989, rel=1e-3)


def test_an_unknown_device_has_the_peaks_that_were_measured():
    ranks = [rank("a", process, device="Other 9000") for process in range(2)]
    content = machine_content(results(ranks, [figure("all", "a", 2)]), "here")
    assert content["peak_tflops"] == {"bf16": 600.0, "fp32": 50.0}
    assert content["efficiency"]["products"] == 1.0
    assert content["efficiency"]["attention"] == 0.75


def test_the_file_is_one_that_the_planner_reads(tmp_path):
    path = tmp_path / "here.yaml"
    write_machine_file(path, results([rank("a", 0), rank("a", 1)], [figure("all", "a", 2)]))
    machine = find_machine(str(path))
    assert (machine.name, machine.gpus_per_node, machine.memory_gib) == ("here", 2, 80.0)
    assert yaml.safe_load(path.read_text())["node_gbps"] == machine.node_gbps == pytest.approx(450, rel=1e-3)


@pytest.mark.parametrize(
    ("ranks", "error"),
    [
        ([rank("a", 0)], "one process has no links"),
        ([rank("a", 0), rank("a", 1), rank("b", 0)], "machines have 1 to 2 processes"),
        ([], "speed was not measured"),
    ],
)
def test_says_what_is_missing(ranks, error):
    with pytest.raises(UserError, match=error):
        machine_content(results(ranks, []), "here")


def test_a_slow_gpu_is_named():
    fast = {"products": {"bf16": 600e12}, "memory": 2.9e12}
    for slow in ({"products": {"bf16": 480e12}, "memory": 2.9e12}, {"products": {"bf16": 600e12}, "memory": 2.0e12}):
        marked, outcome = compare(speed, {"a": fast, "b": slow, "c": fast}, shared={"backend": "nccl"})
        assert marked == {"b": "WARN"}
        assert "process 0" in next(one.text for one in outcome.findings if one.node == "b")
    assert compare(speed, {"a": fast, "b": fast}, shared={"backend": "nccl"})[0] == {}


def test_processes_on_cpus_may_differ_more():
    fast, half = ({"products": {"fp32": rate}, "memory": 1e10} for rate in (1e11, 0.6e11))
    assert compare(speed, {"a": fast, "b": half, "c": fast})[0] == {}
