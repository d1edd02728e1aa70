"""Two live runs in one ``--save``: the second is refused; a run that is gone leaves nothing that a person must remove."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from megatron_cod.common.files import write_whole
from megatron_cod.errors import UserError
from megatron_cod.training.faults import save_claim
from megatron_cod.training.faults.save_claim import FILE, SaveClaim, check_no_other_run
from tests.distributed.launch import run_training_ranks


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(save_claim, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(save_claim, "SILENT_SECONDS", 2.0)


@pytest.fixture
def claim(tmp_path):
    made = SaveClaim(str(tmp_path))
    yield made
    with made.around_training():
        pass


def _nothing(_: str) -> None: ...


def rewrite(folder: Path, **facts) -> None:
    """What another process or machine would have written."""
    path = folder / FILE
    part = path.with_suffix(".part")
    part.write_text(json.dumps({**json.loads(path.read_text()), **facts}))
    part.replace(path)


def test_a_second_run_is_refused_by_name_and_starts_once_the_first_has_ended(tiny, tmp_path):
    flags = [*tiny, "--train-iters", "2", "--save", str(tmp_path), "--save-interval", "2"]
    held = SaveClaim(str(tmp_path))
    refused = run_training_ranks(2, flags)
    assert refused[0].code == 2 and refused[1].code != 0  # the launcher ends the other
    assert f"--save {tmp_path} is in use by another run: process {os.getpid()} on" in refused[0].output
    assert not list(tmp_path.glob("iter_*"))
    with held.around_training():
        pass
    assert [one.code for one in run_training_ranks(2, flags)] == [0, 0]
    assert list(tmp_path.glob("iter_*")) and not list(tmp_path.glob(f"{FILE}*"))


def test_heartbeat_that_waits_for_the_disk_does_not_bring_the_file_back(tmp_path, monkeypatch):
    begun, ended = threading.Event(), threading.Event()

    def slow_write(path, text, name):
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            ended.wait(0.5)  # the run ends meanwhile
        return write_whole(path, text, name)

    monkeypatch.setattr(save_claim, "write_whole", slow_write)
    held = SaveClaim(str(tmp_path))
    with held.around_training():
        assert begun.wait(5)
    ended.set()
    time.sleep(0.3)  # an unguarded write comes now
    assert not (tmp_path / FILE).exists()


def test_a_run_that_ended_with_an_error_leaves_no_claim(tiny, tmp_path):
    flags = [*tiny, "--save", str(tmp_path), "--data-cache-path", "/dev/null/x"]
    assert run_training_ranks(1, flags)[0].code != 0
    check_no_other_run(str(tmp_path), _nothing)


def test_killed_process_has_ended_at_once(tmp_path):
    code = f"""
import time
from megatron_cod.training.faults.save_claim import SaveClaim
SaveClaim({str(tmp_path)!r})
print(1, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        with pytest.raises(UserError, match=f"process {process.pid} on"):
            check_no_other_run(str(tmp_path), _nothing)
        process.kill()
    began = time.monotonic()
    check_no_other_run(str(tmp_path), _nothing)
    assert time.monotonic() - began < 1


def test_a_number_that_is_given_again_is_another_process(tmp_path, claim):
    with pytest.raises(UserError):
        check_no_other_run(str(tmp_path), _nothing)
    claim._over.set()
    time.sleep(0.3)
    rewrite(tmp_path, started="1")
    check_no_other_run(str(tmp_path), _nothing)


def _stop(claim: SaveClaim) -> None:
    claim._over.set()
    time.sleep(0.3)


def test_another_machines_run_is_live_while_its_file_changes(tmp_path, claim):
    _stop(claim)
    rewrite(tmp_path, space="another", host="far", job="77")
    over = threading.Event()

    def heartbeat() -> None:
        number = 0
        while not over.wait(0.5):
            number += 1
            rewrite(tmp_path, heartbeat=number)

    thread = threading.Thread(target=heartbeat)
    thread.start()
    try:
        with pytest.raises(UserError, match="on far, job 77, last heartbeat 20"):
            check_no_other_run(str(tmp_path), _nothing)
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("ends", ["stays", "goes"])
def test_another_machines_run_has_ended_once_its_file_is_unchanged_or_removed(tmp_path, claim, ends):
    _stop(claim)
    rewrite(tmp_path, space="another", host="far")
    lines: list[str] = []
    if ends == "goes":
        threading.Timer(0.5, (tmp_path / FILE).unlink).start()
    check_no_other_run(str(tmp_path), lines.append)
    assert len(lines) == 1 and "in use by a run on far: waiting up to 2 s" in lines[0]


def test_of_two_that_start_at_once_one_ends(tmp_path, claim, monkeypatch):
    ended: list[str] = []
    monkeypatch.setattr(save_claim, "fail", ended.append)
    second = SaveClaim(str(tmp_path))
    time.sleep(0.5)
    _stop(claim)
    assert ended and "was taken by another run" in ended[0]
    assert second._is_ours() and not claim._is_ours()
    with second.around_training():
        pass
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run": 1}'])
def test_half_a_file_claims_nothing(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    check_no_other_run(str(tmp_path), _nothing)


def test_detects_process_that_never_ends(tmp_path, monkeypatch):
    """A killed run would then have to be cleared away by hand: the tests above are about that."""
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        pass
    claim = SaveClaim(str(tmp_path))
    _stop(claim)
    rewrite(tmp_path, pid=process.pid)
    check_no_other_run(str(tmp_path), _nothing)
    monkeypatch.setattr(save_claim, "_started", lambda pid: json.loads((tmp_path / FILE).read_text())["started"])
    with pytest.raises(UserError):
        check_no_other_run(str(tmp_path), _nothing)
