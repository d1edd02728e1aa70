"""Checks of what the job needs: bandwidth, the shared directory, room, data, and the launch itself."""

import shutil

import pytest

from megatron_cod.launch.shared_directory import leave_mark, not_seen
from megatron_cod.preflight import bandwidth, data, job, save
from megatron_cod.preflight.check import Check
from tests.conftest import TINY
from tests.preflight.here import compare, here, members

SHARED = Check("save", 1, save.collect_shared, save.compare_shared)
DISK = Check("disk", 1, save.collect_disk, save.compare_disk)


@pytest.mark.parametrize("nodes", range(3, 12))
def test_each_machine_measures_with_the_next_and_never_twice_at_once(nodes):
    rounds = bandwidth.pair_rounds(nodes)
    assert len(rounds) <= 3
    for pairs in rounds:
        busy = [one for pair in pairs for one in pair]
        assert len(busy) == len(set(busy))
    ring = {frozenset((one, (one + 1) % nodes)) for one in range(nodes)}
    assert sorted(map(sorted, ring)) == sorted(sorted(pair) for pairs in rounds for pair in pairs)


@pytest.mark.parametrize(("nodes", "processes"), [("ab", 1), ("ab", 2), ("abc", 2), ("abcd", 1), ("abcde", 3)])
def test_every_partition_holds_each_rank_once(nodes, processes):
    """torch's subgroups by enumeration hang otherwise."""
    for groups in bandwidth.partitions(members(nodes, processes)).values():
        assert sorted(rank for group in groups for rank in group) == list(range(len(nodes) * processes))


def test_bus_bandwidth_is_that_of_nccl_tests():
    """Its PERFORMANCE.md: all_reduce, busbw = algbw * (2 * (n - 1) / n)."""
    assert [bandwidth.bus_factor(n) for n in (2, 4, 8)] == [1.0, 1.5, 1.75]
    _, outcome = compare(bandwidth, {one: {"all": 0.01} for one in "ab"}, size_mib=16)
    figure = outcome.figures["all_reduce"][0]
    assert figure["algorithm"] == pytest.approx(1.6777216) and figure["bus"] == pytest.approx(1.6777216)


def timed(slow: str) -> dict:
    """Answers of four machines of which one is slow in every pair; seconds of 16 MiB."""
    rounds = bandwidth.partitions(members("abcd"))
    answers: dict = {one: {} for one in "abcd"}
    for name, groups in rounds.items():
        for group in groups:
            taken = 0.1 if slow in [("abcd")[one] for one in group] else 0.01
            for one in group:
                answers["abcd"[one]][name] = taken
    return answers


def test_the_slow_machine_is_named():
    marked, outcome = compare(bandwidth, timed("c"))
    assert marked == {"c": "WARN"}
    assert "slowest machine c" in outcome.line and "slowest pair c and d" in outcome.line
    marked, _ = compare(bandwidth, timed("c"), min_bandwidth=0.5)
    assert marked == {"c": "FAIL"}
    assert compare(bandwidth, timed("none"))[0] == {}


def test_too_little_bandwidth_fails_on_both_of_two():
    marked, _ = compare(bandwidth, {one: {"all": 0.1} for one in "ab"}, min_bandwidth=1.0)
    assert marked == {"a": "FAIL", "b": "FAIL"}


def test_marks_are_seen_in_one_directory_and_not_in_another(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    mark = leave_mark(one)
    assert not_seen(one, [mark.name], 0.0) == []
    assert not_seen(other, [mark.name], 0.3) == [mark.name]
    shutil.copy(mark, other / "copy")  # the name is in it: another file's content is no mark
    (other / mark.name).write_text("something else")
    assert not_seen(other, [mark.name], 0.0) == [mark.name]


def shared(unseen: list[str]) -> dict:
    return {"save": "/x/run", "unseen": unseen, "seconds": 0.1, "filesystem": "nfs4"}


def test_a_directory_of_its_own_fails_on_that_machine():
    job_facts = {"job": {"save": "/x/run"}}
    answers = {"a": shared(["c"]), "b": shared(["c"]), "c": shared(["a", "b"])}
    assert compare(SHARED, answers, shared=job_facts)[0] == {"c": "FAIL"}
    # HEAD does not see it, though it sees HEAD's: a read-only copy, say.
    assert compare(SHARED, {"a": shared(["b"]), "b": shared([])}, shared=job_facts)[0] == {"b": "FAIL"}
    assert compare(SHARED, {"a": shared([]), "b": shared([])}, shared=job_facts)[0] == {}


@pytest.mark.parametrize(
    ("facts", "present", "needed"),
    [
        ({"kept": None, "saves": 10}, 0, 1000),
        ({"kept": 3, "saves": 10}, 0, 400),  # the kept ones, and the one being written
        ({"kept": 3, "saves": 2}, 0, 200),
        ({"kept": 3, "saves": 10}, 3, 100),
        ({"kept": 3, "saves": 10}, 9, 100),
        ({"kept": None, "saves": None}, 0, None),
    ],
)
def test_room_that_checkpoints_need(facts, present, needed):
    assert save.bytes_needed({"checkpoint_bytes": 100, **facts}, present) == needed


def test_a_full_disk_fails_and_a_nearly_full_one_is_warned_of():
    job_facts = {"job": {"save": "/x", "checkpoint_bytes": save.GIB, "kept": 3, "saves": 10}}
    answers = {name: {"free": int(free * save.GIB), "present": 0} for name, free in (("a", 9), ("b", 4.1), ("c", 3.9))}
    marked, outcome = compare(DISK, answers, shared=job_facts)
    assert marked == {"b": "WARN", "c": "FAIL"}
    assert "3.9 GiB free, 4.000 GiB needed" in next(one.text for one in outcome.findings if one.node == "c")


def test_data_that_is_missing_or_of_another_size(text_data, tmp_path):
    prefix = str(text_data / "some_train_text_document")
    at_hand = here(shared={"job": {"prefixes": [prefix], "vocab_size": 512}})
    found = data.collect(at_hand)
    other = {prefix: [found[prefix][0], found[prefix][1] - 1]}
    job_facts = {"job": {"prefixes": [prefix]}}
    assert compare(data, {"a": found, "b": found, "c": other}, shared=job_facts)[0] == {"c": "FAIL"}
    at_hand.shared["job"] = {"prefixes": [str(tmp_path / "none")]}
    with pytest.raises(ValueError, match="does not exist"):
        data.collect(at_hand)
    at_hand.shared["job"] = {"files": [str(tmp_path / "tokenizer.model")]}
    with pytest.raises(FileNotFoundError):
        data.collect(at_hand)


def test_preflight_reads_the_launch(text_data, tmp_path):
    paths = [f"--{part}-data-path={text_data / f'some_{part}_text_document'}" for part in ("train", "valid")]
    flags = [*TINY, *paths, "--save", str(tmp_path / "run"), "--save-interval", "4", "--keep-last-checkpoints", "5"]
    found = job.describe(2, flags)
    assert found["error"] == "" and found["save"] == str(tmp_path / "run")
    assert (found["saves"], found["kept"], len(found["prefixes"])) == (2, 5, 2)
    assert found["plan"].startswith("2 ranks: TP 1, PP 1")
    refused = job.describe(3, flags)
    assert "--global-batch-size 4 is not a multiple of" in refused["error"]
    unknown = job.describe(2, [*flags, "--no-such-flag"])
    assert "--no-such-flag" in unknown["error"]
    marked, outcome = compare(job, {"a": True, "b": True}, shared={"job": refused})
    assert marked == {"a": "FAIL"}
    assert "would be refused: --global-batch-size" in outcome.findings[0].text


@pytest.mark.parametrize(("there", "state"), [(100, None), (84, "WARN"), (79, "FAIL")])
def test_a_rank_that_needs_more_than_the_gpu_has(there, state):
    facts = {"job": {"error": "", "memory_bytes": 80 << 30, "plan": ""}, "gpu_memory_bytes": there << 30}
    marked, _ = compare(job, {"a": True}, shared=facts)
    assert marked == ({"a": state} if state else {})
