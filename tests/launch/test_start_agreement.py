"""What ranks agree on before a run: the judgement on made-up votes, and the meeting in real processes."""

import multiprocessing
import os
import time

import pytest

from megatron_cod.errors import UserError
from megatron_cod.launch import start_agreement
from megatron_cod.launch.start_agreement import compare_votes
from tests.distributed.launch import run_training_ranks
from tests.ports import free_port

VERSIONS = {"torch": "2.15.0", "megatron_cod": "0.1.0 (code 1)", "python": "3.12.1"}


def vote(rank: int, host: str, mark: str | None = None, **changed: str) -> dict:
    return {"rank": rank, "host": host, "versions": {**VERSIONS, **changed}, "mark": mark}


def test_equal_votes_agree():
    others = {"rank": 1, "host": "a", "versions": None, "mark": None}  # not the first of its machine
    assert compare_votes([vote(0, "a"), others, vote(2, "b", python="3.12.2")], [], None, 60) == "agreed"


def test_unequal_versions_name_ranks_and_hosts():
    line = compare_votes([vote(0, "a"), vote(2, "b", torch="2.14.0"), vote(4, "c")], [], None, 60)
    assert line == (
        "the machines run different versions: torch 2.15.0 on a (rank 0), c (rank 4); 2.14.0 on b (rank 2); "
        "install the same on all"
    )


def test_ranks_that_gave_no_sign_are_named():
    line = compare_votes([vote(0, "a")], [2, 3], None, 60)
    assert line == "no sign of rank 2, 3 within 60 s; heard from a"


def test_names_machine_whose_mark_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(start_agreement, "SEEN_WITHIN_SECONDS", 0.2)
    (tmp_path / "one").write_text("one")
    line = compare_votes([vote(0, "a", "one"), vote(2, "b", "two")], [], str(tmp_path), 60)
    assert f"--save {tmp_path} is not one directory on all machines" in line and "what b wrote there" in line
    (tmp_path / "two").write_text("two")
    assert compare_votes([vote(0, "a", "one"), vote(2, "b", "two")], [], str(tmp_path), 60) == "agreed"


class OnRankOne:
    """In rank 1, which then counts as a machine of its own: another version, or another working directory."""

    def __init__(self, version: str | None = None, directory: str | None = None, compared: str | None = None) -> None:
        self.version, self.directory, self.compared = version, directory, compared

    def __call__(self) -> None:
        os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        start_agreement.SEEN_WITHIN_SECONDS = 1.0
        if self.compared:  # the mutant: a judge who does not look
            start_agreement.compare_votes = lambda *_: self.compared
        if os.environ["RANK"] == "1":
            if self.version:
                here = start_agreement.versions_here()
                start_agreement.versions_here = lambda: {**here, "torch": self.version}
            if self.directory:
                os.chdir(self.directory)


def refused(flags: list[str], before: OnRankOne) -> str:
    """The run ends on both ranks with exit code 2; what rank 0 said last."""
    begun = time.monotonic()
    ended = run_training_ranks(2, flags, before=before)
    assert ended[0].code == 2, ended[0].output[-2000:]
    assert ended[1].code in (2, -15)  # or ended by the launcher while it left the word to rank 0
    assert time.monotonic() - begun < 120
    return ended[0].output.strip().splitlines()[-1]


def test_another_version_on_one_rank_ends_all_before_the_first_step(tiny):
    line = refused(tiny, OnRankOne(version="2.14.0"))
    assert line.startswith("error: the machines run different versions: torch ") and "2.14.0 on " in line
    assert "(rank 1); install the same on all" in line


@pytest.mark.slow
def test_detects_vote_that_is_not_compared(tiny):
    ended = run_training_ranks(2, tiny, before=OnRankOne(version="2.14.0", compared="agreed"))
    assert [one.code for one in ended] == [0, 0]


def test_a_directory_that_is_not_shared_ends_all(tiny, tmp_path, monkeypatch):
    here, other = tmp_path / "here", tmp_path / "other"
    here.mkdir()
    other.mkdir()
    command = [*tiny, "--save", "run", "--save-interval", "8"]
    before = OnRankOne(directory=str(other))
    monkeypatch.chdir(here)
    line = refused(command, Chdir(str(here), before))
    assert line.startswith("error: --save run is not one directory on all machines")
    assert not list(here.glob("run/.mark*")) and not list(other.glob("run/.mark*"))


class Chdir:
    """Start in a directory, then what else is to be done."""

    def __init__(self, directory: str, then: OnRankOne) -> None:
        self.directory, self.then = directory, then

    def __call__(self) -> None:
        os.chdir(self.directory)
        self.then()


def test_data_that_one_rank_alone_does_not_find_ends_all_and_names_it(tiny, text_data, tmp_path):
    prefix = "some_train_text_document"
    command = [prefix if word == str(text_data / prefix) else word for word in tiny]
    line = refused(command, Chdir(str(text_data), OnRankOne(directory=str(tmp_path))))
    assert line.startswith("error: rank 1 on ") and f"dataset {prefix} does not exist" in line


def _rank(rank: int, port: int, fails: int | None, results) -> None:
    """A process that a launcher without an agent's store started, as srun does: rank 0 holds the store itself."""
    names = {"RANK": rank, "WORLD_SIZE": 3, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    os.environ |= {
        **{key: str(value) for key, value in names.items()},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    from types import SimpleNamespace

    if rank == 2 and fails == 0:
        time.sleep(8)  # Megatron's imports, from a slow file system: the store is still there
    try:
        with start_agreement.among_ranks() as agree:
            if rank == fails:
                raise UserError("no such file")
            agree(SimpleNamespace(save=None, distributed_timeout_minutes=0.5))
        if rank == 0:
            # The process group's store shares the port with the one that is still open.
            from torch.distributed import TCPStore

            TCPStore("127.0.0.1", port, is_master=True, multi_tenant=True, wait_for_workers=False)
        results.put((rank, ""))
    except Exception as error:
        results.put((rank, str(error)))


@pytest.mark.parametrize("fails", [None, 0, 2])
@pytest.mark.slow
def test_rank_0_keeps_the_store_until_all_know_the_result(fails):
    context = multiprocessing.get_context("spawn")
    results, port = context.Queue(), free_port(24000)
    processes = [context.Process(target=_rank, args=(rank, port, fails, results)) for rank in range(3)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=100) for _ in processes)
    for process in processes:
        process.join(30)
    for rank in range(3):
        if fails is None:
            assert found[rank] == ""
        elif rank == fails:
            assert found[rank] == "no such file"
        else:
            assert found[rank].startswith(f"rank {fails} on ") and found[rank].endswith(": no such file")
