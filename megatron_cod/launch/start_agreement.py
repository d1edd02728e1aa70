"""Before a run begins: every rank has passed its checks, on machines that have the same versions and share ``--save``.

The ranks meet at the launch's key-value store, where their process group is about to meet: before any collective, which
versions that differ may crash or hang. Each gives one vote, rank 0 decides, all read the decision. A rank that fails writes
the decision itself, so that ranks on other machines end with its line instead of waiting for it.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import DistError, TCPStore

from megatron_cod.args import MegatronArgs
from megatron_cod.common.lists import listed
from megatron_cod.errors import USER_ERROR, CommonError, Phase, UserError, ending, one_line
from megatron_cod.launch.shared_directory import leave_mark, not_seen
from megatron_cod.launch.versions import MUST_AGREE, differences, versions_here

_AGREED = "agreed"
_TEMPORARY = "may pass: "
"""Before the line of a rank that failed by no fault of who started the run."""
_PREFIX = "megatron_cod/agreement"
SEEN_WITHIN_SECONDS = 10.0
"""How long a file that one machine wrote into ``--save`` may take to be visible on another."""
_RANK_0_SECONDS = 25.0  # less than torchrun gives a process between SIGTERM and SIGKILL
_SHORT_SECONDS = 60.0  # ranks import Megatron at different speeds, from a slow file system even more so

_server: Any = None
"""Rank 0's store, for as long as the process lives: the process group's shares its port."""


class _Meeting:
    """This rank at the store."""

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        alone = os.environ.get("LOCAL_WORLD_SIZE") == str(self.world)
        # An agent's store may outlive an attempt, and the count of attempts is common to the ranks of one machine.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if alone else "0"
        self._keys = f"{_PREFIX}/{attempt}"
        self._hosts_store = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)
        self._store: Any = None
        if self._hosts_store:
            self._connect(_SHORT_SECONDS)  # at once: the others wait for it

    def _connect(self, seconds: float) -> Any:
        global _server
        if self._store is None:
            host, port = self._place
            wait = timedelta(seconds=seconds)
            try:
                self._store = TCPStore(
                    host, port, is_master=self._hosts_store, timeout=wait, multi_tenant=True, wait_for_workers=False
                )
            except DistError as error:
                if self._hosts_store:
                    why = "is in use" if "EADDRINUSE" in str(error) else f"cannot be opened ({one_line(error)[:100]})"
                    raise UserError(f"port {port} of {host} (MASTER_PORT) {why}; give the job another") from None
                raise UserError(
                    f"rank 0 did not answer at {host}:{port} within {seconds:.0f} s: has its process started, is the "
                    f"name right, does a firewall close the port, is the interface up (INTERFACE)?"
                ) from None
            if self._hosts_store:
                _server = self._store
        return self._store

    def vote(self, facts: dict[str, Any], seconds: float) -> None:
        self._connect(seconds).set(f"{self._keys}/vote/{self.rank}", json.dumps(facts))
        if self.rank == 0:
            self.meet_rank_0(seconds)

    def meet_rank_0(self, seconds: float) -> None:
        """Tell the others that rank 0 has finished its checks; on another rank, wait until it has."""
        store, key = self._connect(seconds), f"{self._keys}/rank 0"
        if self.rank == 0:
            store.set(key, "")
        else:
            store.wait([key], timedelta(seconds=seconds))

    def votes(self, seconds: float) -> tuple[list[dict[str, Any]], list[int]]:
        """For rank 0: the votes in rank order, and the ranks that gave none in time. Ends early when one has failed."""
        store, deadline = self._connect(seconds), time.monotonic() + seconds
        given: list[dict[str, Any]] = []
        absent: list[int] = []
        for rank in range(self.world):
            key = f"{self._keys}/vote/{rank}"
            while not store.check([key]):
                if store.check([f"{self._keys}/verdict"]):
                    return given, absent
                if time.monotonic() > deadline:
                    absent.append(rank)
                    break
                time.sleep(0.02)
            else:
                given.append(json.loads(store.get(key)))
        return given, absent

    def decide(self, decision: str, seconds: float) -> str:
        """Write a decision; returns the one that counts, which is the first."""
        return self._connect(seconds).compare_set(f"{self._keys}/verdict", "", decision).decode()

    def decision(self, seconds: float) -> str:
        store, key = self._connect(seconds), f"{self._keys}/verdict"
        try:
            store.wait([key], timedelta(seconds=seconds))
            return store.get(key).decode()
        except DistError:
            return f"rank 0 gave no verdict on the start within {seconds:.0f} s, or is gone; see its output"

    def leave(self) -> None:
        """The decision is known here. Rank 0, which holds the store, waits until it is known everywhere.

        A rank that starts later finds no store, and could only say that rank 0 does not answer.
        """
        with suppress(DistError):
            known = self._store.add(f"{self._keys}/known", 1) if self._store else 0
            deadline = time.monotonic() + _RANK_0_SECONDS
            while self._hosts_store and known < self.world and time.monotonic() < deadline:
                time.sleep(0.05)
                known = self._store.add(f"{self._keys}/known", 0)


def compare_votes(votes: list[dict[str, Any]], absent: list[int], save: str | None, seconds: float) -> str:
    """The decision on all votes: ``agreed``, or the line to end with.

    votes: {"rank", "host", "versions", "mark", "data"}; the last three are None but for one rank a machine.
    """
    if absent:
        heard = sorted({vote["host"] for vote in votes})
        return f"no sign of rank {listed(absent)} within {seconds:.0f} s; heard from {', '.join(heard[:8]) or 'nobody'}"
    versions = {f"{vote['host']} (rank {vote['rank']})": vote["versions"] for vote in votes if vote["versions"]}
    unequal = [line for name, (line, _) in differences(versions).items() if name in MUST_AGREE]
    if unequal:
        return f"the machines run different versions: {', and '.join(unequal)}; install the same on all"
    other_data = _other_data(votes)
    if other_data:
        return other_data
    writers = {vote["mark"]: vote["host"] for vote in votes if vote["mark"]}
    lost = not_seen(save, list(writers), SEEN_WITHIN_SECONDS) if save else []
    if lost:
        others = ", ".join(sorted({writers[mark] for mark in lost}))
        return (
            f"--save {save} is not one directory on all machines: {socket.gethostname()} (rank 0) does not see within "
            f"{SEEN_WITHIN_SECONDS:.0f} s what {others} wrote there; give a path on a file system that they share"
        )
    return _AGREED


def _other_data(votes: list[dict[str, Any]]) -> str | None:
    """A line when a dataset holds something else on one machine than on another."""
    first: dict[str, tuple[str, str]] = {}
    for vote in votes:
        for prefix, digest in (vote.get("data") or {}).items():
            host, known = first.setdefault(prefix, (vote["host"], digest))
            if digest != known:
                return (
                    f"dataset {prefix} is not the same on {host} and on {vote['host']} (rank {vote['rank']}): copy it "
                    "anew, or name one on a file system that they share"
                )
    return None


def _agree(meeting: _Meeting, args: MegatronArgs) -> None:
    seconds = 60.0 * args.distributed_timeout_minutes
    reports = os.environ.get("LOCAL_RANK", "0") == "0"  # for its machine
    mark = leave_mark(args.save) if args.save and reports else None
    try:
        facts = {"rank": meeting.rank, "host": socket.gethostname(), "versions": versions_here() if reports else None}
        facts["data"] = getattr(args, "data_content", None)
        meeting.vote(facts | {"mark": mark.name if mark else None}, seconds)
        if meeting.rank == 0:
            votes, absent = meeting.votes(seconds)
            decision = meeting.decide(compare_votes(votes, absent, args.save, seconds), seconds)
        else:
            decision = meeting.decision(seconds)
    finally:
        if mark:
            Path(mark).unlink(missing_ok=True)
    if decision != _AGREED:
        raise CommonError(decision.removeprefix(_TEMPORARY), may_pass=decision.startswith(_TEMPORARY) or None)


@contextmanager
def among_ranks() -> Iterator[Callable[[Any], None]]:
    """Around the checks before a run; yields the function that all ranks call last, with Megatron's arguments.

    It returns when all have called it and agree, and raises CommonError with the same line on all otherwise, after
    ``--distributed-timeout-minutes`` at the latest. What is raised in the block is made known to the other ranks.
    """
    if (
        int(os.environ.get("WORLD_SIZE", "1")) < 2
        or "MASTER_ADDR" not in os.environ
        or "--fake-process-group" in sys.argv
    ):
        yield lambda args: None
        return
    meeting = _Meeting()
    agreed = False

    def agree(args: MegatronArgs) -> None:
        nonlocal agreed
        _agree(meeting, args)
        agreed = True

    try:
        yield agree
    except BaseException as error:
        if not agreed and not (isinstance(error, SystemExit) and not error.code):
            found = ending(error, Phase.START)
            line = f"rank {meeting.rank} on {socket.gethostname()}: {found.line}"
            # The other ranks end when they read this line, and the launcher then sends SIGTERM to this one, whose trace
            # is not in its log yet.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            with suppress(DistError, UserError):  # it is this rank's own error that counts
                meeting.decide(_TEMPORARY * (found.code != USER_ERROR) + line, _SHORT_SECONDS)
                meeting.meet_rank_0(_RANK_0_SECONDS)  # which prints its own line first, if it has one
                meeting.leave()
        raise
