"""What holds for every layout: times split up, wait and grow as they must; and mutants that these properties detect."""

from dataclasses import fields, replace

import pytest

from megatron_cod.planner import layer, stages, step, update
from megatron_cod.planner.layouts import Layout, changed_args
from megatron_cod.planner.machine import Efficiency, Machine
from megatron_cod.planner.simulation import Passes, Pipeline, finish_times
from megatron_cod.planner.split import NAMES, Cost, Split
from megatron_cod.planner.step import step_time
from tests.planner.runs import EXPERTS, H100, launched, some_args
from tests.rehearsal.simulated import BACKWARD, FORWARD, INTERLEAVED, PIPELINES, simulate

FASTER = ("memory_gbps", "node_gbps", "network_gbps")
QUICKER = ("node_latency_us", "network_latency_us")


def check_split(args) -> None:
    found = step_time(args, H100)
    for stage in found.stages:
        assert all(getattr(stage.split, name) >= 0 for name in NAMES), stage
        assert stage.split.total == pytest.approx(found.seconds, rel=1e-9), stage
        assert stage.hidden >= -1e-12


def test_the_split_of_each_stage_adds_up_and_nothing_is_negative():
    for args in some_args():
        check_split(args)


def faster_machines() -> list[tuple[str, Machine]]:
    found = [(name, replace(H100, **{name: 2 * getattr(H100, name)})) for name in FASTER]
    found += [(name, replace(H100, **{name: getattr(H100, name) / 2})) for name in QUICKER]
    found.append(("peak", replace(H100, peak_tflops={"bf16": 2 * H100.peak_tflops["bf16"]})))
    for share in fields(Efficiency):
        shares = replace(H100.efficiency, **{share.name: 1.0})
        found.append((share.name, replace(H100, efficiency=shares)))
    return found


@pytest.mark.slow
def test_a_better_machine_is_never_slower():
    for args in some_args():
        known = step_time(args, H100).seconds
        for name, machine in faster_machines():
            assert step_time(args, machine).seconds <= known * (1 + 1e-9), name


def test_each_number_of_the_machine_matters_somewhere():
    every = some_args()
    known = [step_time(args, H100).seconds for args in every]
    for name, machine in faster_machines():
        assert any(step_time(args, machine).seconds < 0.9999 * one for args, one in zip(every, known, strict=True)), (
            name
        )


def test_equal_layouts_have_equal_times():
    """The same layout from its flags and from another layout's arguments."""
    flags = ("--tensor-model-parallel-size", "4", "--pipeline-model-parallel-size", "2", "--sequence-parallel")
    direct = launched(*flags, "--num-virtual-stages-per-pipeline-rank", "4", "--micro-batch-size", "2")
    other = changed_args(launched(), Layout(4, 2, 4, 1, 1, 2, "none"))
    assert step_time(direct, H100) == step_time(other, H100)
    back = changed_args(changed_args(direct, Layout(1, 1, 1, 1, 1, 1, "full")), Layout(4, 2, 4, 1, 1, 2, "none"))
    assert step_time(back, H100) == step_time(direct, H100)


@pytest.mark.parametrize(("count", "chunks", "microbatches"), PIPELINES + INTERLEAVED)
def test_passes_end_when_the_tests_own_simulation_ends_them(count, chunks, microbatches):
    pipeline = Pipeline([[Passes(FORWARD, BACKWARD)] * chunks] * count, microbatches)
    assert max(finish_times(pipeline)) == simulate(count, chunks, microbatches)[0]


def test_a_slow_stage_delays_all_others():
    even = [[Passes(1, 2)] for _ in range(4)]
    slow = [*even[:2], [Passes(2, 4)], even[3]]
    assert max(finish_times(Pipeline(slow, 8))) >= 8 * 6
    assert max(finish_times(Pipeline(slow, 8))) > max(finish_times(Pipeline(even, 8)))


def test_transfers_take_longer_where_the_sender_waits():
    pipeline = Pipeline([[Passes(1, 2)] for _ in range(4)], 8)
    free, beside, blocked = (max(finish_times(pipeline, *one)) for one in ((0.0,), (0.25,), (0.25, True)))
    assert free < beside < blocked


def test_lns_costs_nothing_and_streams_cost_their_transfers():
    cut = ("--pipeline-model-parallel-size", "4")
    plain, lns = launched("--norm-scheme", "pre_ln", *cut), launched("--norm-scheme", "lns", *cut)
    streams = launched("--norm-scheme", "hyper_connections", *cut)
    assert step_time(lns, H100) == step_time(plain, H100)
    count = step.design_from_args(streams).streams
    assert count > 1
    times = [step.transfer_seconds(layer.setting(args, H100, layer.TODAY)) for args in (plain, streams)]
    latency = H100.network_latency_us * 1e-6
    assert times[1] - latency == pytest.approx(count * (times[0] - latency))


def test_full_recomputation_costs_a_forward_pass():
    kept, again = (changed_args(launched(), Layout(2, 1, 1, 1, 1, 1, kind)) for kind in ("none", "full"))
    split = step_time(again, H100).busiest.split
    forward = layer.layer_cost(layer.setting(kept, H100, layer.TODAY), False).forward
    count = kept.num_layers * kept.global_batch_size / kept.data_parallel_size
    assert split.recomputation == pytest.approx(count * (forward.total - forward.tensor))


def test_flops_are_those_of_megatron():
    """Megatron's own count, which the log of a run uses."""
    from megatron.training.training import num_floating_point_operations

    for flags in ((), EXPERTS, ("--group-query-attention", "--num-query-groups", "8")):
        args = launched(*flags)
        expected = num_floating_point_operations(args, args.global_batch_size)
        assert stages.model_flops(args) == pytest.approx(expected, rel=1e-9)


def pipelined():
    return changed_args(launched(), Layout(4, 4, 2, 1, 1, 1, "none"))


def test_detects_a_bubble_of_the_wrong_stage(monkeypatch):
    """The first stage's seconds in place of each stage's own."""
    real = step._stage_time

    def of_the_first(stage, chunks, count, own, whole, moved):
        found = real(stage, chunks, count, own, whole, moved)
        first = found.split.bubble + found.split.head
        return replace(found, split=replace(found.split, bubble=first))

    check_split(pipelined())
    monkeypatch.setattr(step, "_stage_time", of_the_first)
    with pytest.raises(AssertionError):
        check_split(pipelined())


def check_replicas(args) -> None:
    """Gradients are summed once a step: twice the micro-batches leave that time as it is."""
    import copy

    twice = copy.copy(args)
    twice.global_batch_size *= 2
    once, double = step_time(args, H100).busiest.split, step_time(twice, H100).busiest.split
    assert double.data == pytest.approx(once.data)
    assert double.products == pytest.approx(2 * once.products)


def test_detects_gradients_summed_in_each_micro_batch(monkeypatch):
    check_replicas(pipelined())
    real = update.update

    def in_each(to, dense, experts, passes, tied):
        found = real(to, dense, experts, passes, tied)
        return replace(found, gradients=found.gradients * to.args.global_batch_size)

    monkeypatch.setattr(step, "update", in_each)
    with pytest.raises(AssertionError):
        check_replicas(pipelined())


def check_every_size_communicates() -> None:
    """Each size above 1 has time in the communication that it needs."""
    split = changed_args(launched(), Layout(4, 1, 1, 1, 1, 1, "none"))
    assert layer.layer_cost(layer.setting(split, H100, layer.TODAY), False).forward.tensor > 0
    assert step_time(changed_args(launched(), Layout(4, 1, 1, 1, 1, 1, "none")), H100).busiest.split.tensor > 0
    assert step_time(changed_args(launched(), Layout(1, 1, 1, 1, 1, 1, "none")), H100).busiest.split.data > 0
    assert step_time(changed_args(launched(), Layout(1, 8, 1, 1, 1, 1, "none")), H100).busiest.split.pipeline > 0
    expert = changed_args(launched(*EXPERTS), Layout(1, 1, 1, 1, 8, 1, "none"))
    assert step_time(expert, H100).busiest.split.expert > 0


@pytest.mark.parametrize(
    ("module", "name"), [(layer, "gather"), (layer, "all_to_all"), (update, "gather"), (step, "send")]
)
def test_detects_a_collective_that_is_missing(monkeypatch, module, name):
    check_every_size_communicates()
    monkeypatch.setattr(module, name, lambda *_: 0.0)
    with pytest.raises(AssertionError):
        check_every_size_communicates()


def test_costs_add_up():
    one = Cost(Split(products=1.0, tensor=0.5), Split(products=2.0), hidden=0.25)
    assert (one + one).forward == one.forward.times(2)
    assert one.times(3).hidden == 0.75
    assert one.forward.total == 1.5
