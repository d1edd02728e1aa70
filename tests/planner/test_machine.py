"""Machine files: what is wrong in one is named; data-sheet machines are complete."""

import pytest
import yaml

from megatron_cod.errors import UserError
from megatron_cod.planner.collectives import Group, all_reduce, all_to_all, gather, placed
from megatron_cod.planner.machine import BUILT_IN, as_content, find_machine

H100 = BUILT_IN["h100"]


def written(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_file_reads_back_what_was_built_in(tmp_path):
    for machine in BUILT_IN.values():
        assert find_machine(written(tmp_path, as_content(machine))) == machine


def test_a_file_changes_only_what_it_has(tmp_path):
    found = find_machine(written(tmp_path, {"base": "h100", "network_gbps": 12.5, "efficiency": {"memory": 0.5}}))
    assert (found.name, found.network_gbps, found.efficiency.memory) == ("mine", 12.5, 0.5)
    assert (found.node_gbps, found.efficiency.products) == (H100.node_gbps, H100.efficiency.products)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"network_gbps": 0}, "network_gbps is 0"),
        ({"memory_gib": -80}, "memory_gib is -80"),
        ({"memory_gbps": "fast"}, "memory_gbps is 'fast'"),
        ({"node_latency_us": float("nan")}, "node_latency_us is nan"),
        ({"node_gbps": float("inf")}, "node_gbps is inf"),
        ({"node_gbps": True}, "node_gbps is True"),
        ({"gpus_per_node": 0}, "gpus_per_node is 0"),
        ({"gpus_per_node": 7.5}, "gpus_per_node is 7.5"),
        ({"efficiency": {"products": 1.2}}, r"efficiency.products is 1.2; .* at most 1"),
        ({"peak_tflops": {"bf16": 0}}, "peak_tflops.bf16 is 0"),
        ({"peak_tflops": 989}, "peak_tflops is 989"),
        ({"netwrok_gbps": 50}, "netwrok_gbps is not a field"),
        ({"base": "h300"}, "base is 'h300'; known: a100_80gb, h100, h200, b200"),
    ],
)
def test_rejects_impossible_number(tmp_path, changes, error):
    with pytest.raises(UserError, match=error):
        find_machine(written(tmp_path, {"base": "h100"} | changes))


def test_rejects_file_with_a_number_missing(tmp_path):
    for name in as_content(H100):
        content = as_content(H100)
        del content[name]
        if name != "name":
            with pytest.raises(UserError, match=f"{name} is missing"):
                find_machine(written(tmp_path, content))


def test_rejects_file_that_is_none(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("[1, 2")
    with pytest.raises(UserError, match="is not a YAML file"):
        find_machine(str(path))
    with pytest.raises(UserError, match=r"neither a known machine \(a100_80gb, h100, h200, b200\) nor a file"):
        find_machine("h300")


def test_rejects_precision_without_a_peak():
    with pytest.raises(UserError, match=r"a100_80gb has no peak_tflops.fp8"):
        BUILT_IN["a100_80gb"].peak("fp8")


def test_a_group_is_placed_by_its_stride():
    assert placed(H100, 8, 1) == Group(8, 8)
    assert placed(H100, 16, 2) == Group(16, 4)
    assert placed(H100, 4, 8) == Group(4, 1)
    assert placed(H100, 2, 2) == Group(2, 2)


def test_collectives_have_the_volume_of_a_ring():
    """Against the formula by hand, with latencies taken off."""
    from dataclasses import replace

    quick = replace(H100, node_latency_us=1e-9, network_latency_us=1e-9)
    near, far = quick.node_rate, quick.network_rate
    assert gather(quick, Group(8, 8), 8e9) == pytest.approx(7e9 / near)
    assert all_reduce(quick, Group(4, 1), 8e9) == pytest.approx(2 * 6e9 / far)
    assert gather(quick, Group(16, 4), 8e9) == pytest.approx(7.5e9 / min(4 * far, near))
    assert all_to_all(quick, Group(16, 8), 8e9) == pytest.approx(max(3.5e9 / near, 4e9 / far))
    assert all_to_all(quick, Group(16, 8), 8e9, copies=2) == pytest.approx(0.75 / 2 * 8e9 / far)
    assert gather(quick, Group(1, 1), 8e9) == all_to_all(quick, Group(1, 1), 8e9) == 0.0
