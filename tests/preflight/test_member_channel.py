"""Processes that meet, keep step, and lose one: as threads, over a real store."""

import re
import runpy
import threading
import time
from functools import partial

import pytest

from megatron_cod.preflight.check import Check
from megatron_cod.preflight.findings import FAIL, OK, Finding, Outcome
from megatron_cod.preflight.member_channel import Meeting, Member, distinct_names, in_time
from megatron_cod.preflight.process_place import Place, find_place
from megatron_cod.preflight.report import as_json, failed, format_table, missing_findings
from megatron_cod.preflight.table import Result, compared
from tests.conftest import ROOT
from tests.ports import free_port
from tests.preflight.here import here


def test_check_ends_at_time_out():
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="no end within 0 s"):
        in_time(partial(time.sleep, 30), 0.2)
    assert time.monotonic() - begun < 5
    assert in_time(lambda: 3, 5) == 3
    with pytest.raises(ZeroDivisionError):
        in_time(lambda: 1 / 0, 5)


def test_machines_of_one_name_are_numbered():
    places = [("x", 0), ("x", 1), ("y", 0), ("x", 0), ("x", 1)]
    assert distinct_names(places) == [("x", 0), ("x", 1), ("y", 0), ("x#2", 0), ("x#2", 1)]


def place(node: str, world: int, head: bool = False, expected: tuple[str, ...] = ()) -> Place:
    return Place(node, 0, world, head, expected)


class Others:
    """Processes beside HEAD, a thread each; ``errors`` by name."""

    def __init__(self) -> None:
        self.errors: dict[str, str] = {}
        self._threads: list[threading.Thread] = []

    def start(self, name: str, body) -> None:
        def run() -> None:
            try:
                body()
            except ValueError as error:
                self.errors[name] = str(error)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


def test_continues_without_silent_machine():
    port, others = free_port(21000), Others()

    def member(node: str, pause: float) -> None:
        meeting = Meeting(place(node, 3), "127.0.0.1", port, 20)
        meeting.gather(20)
        time.sleep(pause)
        meeting.collect("one", node, [0, 1, 2], 1)
        meeting.collect("two", node * 2, [0, 1], 5)
        meeting.depart()

    others.start("b", lambda: member("b", 0))
    others.start("c", lambda: member("c", 2.5))
    head = Meeting(place("a", 3, True), "127.0.0.1", port, 20)
    assert head.gather(20) == []
    assert [one.node for one in head.members] == ["a", "b", "c"]
    assert head.collect("one", "a", [0, 1, 2], 1) == {0: "a", 1: "b"}
    assert [one.node for one in head.members] == ["a", "b"]
    assert head.collect("two", "aa", [0, 1], 5) == {0: "aa", 1: "bb"}
    head.depart()
    time.sleep(1)  # the late one finds the store once more
    others.join()
    assert others.errors == {"c": "this process took too long for the check of one: the preflight continues without it"}


def test_names_missing_machines_of_slurm():
    head = Meeting(place("a", 3, True, ("a", "b", "c")), "127.0.0.1", free_port(22000), 5)
    missing = head.gather(0.5)
    assert missing == [["b", "not there within 0 s"], ["c", "not there within 0 s"]]
    head = Meeting(place("a", 3, True), "127.0.0.1", free_port(22000), 5)
    assert head.gather(0.5) == [["?", "1 of 3 processes came within 0 s, from a"]]


def test_without_head_there_is_one_line_in_time():
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"the preflight on HEAD did not answer at 127.0.0.1:\d+ within 2 s"):
        Meeting(place("b", 2), "127.0.0.1", free_port(23000), 2)
    assert time.monotonic() - begun < 15


WRONG = {
    "port above": (["--port", "99999"], "PORT (--port) is '99999', which is not a whole number from 1 to 65535"),
    "the last port": (
        ["--port", "65535"],
        "the preflight's own port (--meeting-port) is '65536', which is not a whole",
    ),
    "port": (["--port", "abc"], "PORT (--port) is 'abc', which is not a whole number"),
    "nodes": (["--nodes", "0"], "NODES (--nodes) is '0', which is not a whole number of at least 1"),
    "processes": (["--processes", "x"], "PROCESSES (--processes) is 'x', which is not a whole number of at least 1"),
}


@pytest.mark.parametrize(("flags", "said"), WRONG.values(), ids=WRONG)
def test_numbers_that_are_none(flags, said, monkeypatch):
    monkeypatch.setattr("sys.argv", ["preflight.py", *flags])
    with pytest.raises(ValueError, match=re.escape(said)):
        runpy.run_path(str(ROOT / "tools" / "preflight.py"))["main"]()


def test_the_place_under_each_launcher():
    slurm = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURMD_NODENAME": "n2"}
    assert find_place(slurm, "n1", 1, 1) == Place("n2", 1, 4, False, ())
    torchrun = find_place({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "n1", 1, 1)
    assert (torchrun.world, torchrun.is_head) == (2, True)
    alone = find_place({"LOCAL_RANK": "1"}, "localhost", 2, 3)
    assert (alone.local, alone.world, alone.is_head) == (1, 6, False)
    with pytest.raises(ValueError, match="HEAD no-such-host is not a host name known here"):
        find_place({}, "no-such-host", 2, 1)


CHECK = Check(
    "x", 5, lambda at_hand: 1, lambda answers, at_hand: Outcome([Finding(m.node, "x", OK, "") for m in answers])
)


def test_no_answer_and_an_error_fail_the_machine():
    asked = [Member(0, "a", 0), Member(1, "b", 0), Member(2, "c", 0)]
    outcome = compared(CHECK, here("abc"), asked, {0: {"value": 1}, 1: {"error": "no end within 5 s"}})
    assert [(one.node, one.state) for one in outcome.findings] == [("b", FAIL), ("c", FAIL), ("a", OK)]
    assert outcome.findings[1].text == "process 0 gave no answer within 15 s"


def results(states: dict[str, str]) -> list[Result]:
    return [Result("x", Outcome([Finding(node, "x", state, "text", "hint") for node, state in states.items()], "line"))]


def test_table_has_a_row_for_each_machine():
    text = format_table(results({"a": "OK", "b": "FAIL"}), missing_findings([["c", "not there within 9 s"]]))
    lines = text.splitlines()
    assert [line.split() for line in lines[:4]] == [["node", "x"], ["a", "OK"], ["b", "FAIL"], ["c", "absent"]]
    assert "x: line" in lines and "FAIL b x: text; hint" in lines
    assert any(line.startswith("FAIL c there: not there within 9 s") for line in lines)


def test_exit_code_is_of_the_worst_state():
    assert failed(results({"a": "FAIL"}), [])
    assert failed(results({"a": "OK"}), missing_findings([["c", "not there"]]))
    assert not failed(results({"a": "OK", "b": "WARN"}), [])
    assert as_json(results({"a": "FAIL"}), [])["passed"] is False


def test_of_many_machines_only_those_with_findings_are_listed():
    text = format_table(results({f"n{number}": "FAIL" if number == 77 else "OK" for number in range(100)}), [])
    assert "99 more machines, all in order" in text and "n77" in text and "n76" not in text
